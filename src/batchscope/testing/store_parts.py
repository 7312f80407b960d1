"""Does a store keep the parts of a long measurement as `batchscope.store.base_documents` says?

Part of `store_contract.StoreContract`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import StoreError
from batchscope.records import PointSharpness, from_plain, to_plain
from batchscope.store.base import Store
from batchscope.testing.example_sharpness import make_file_point, make_point
from batchscope.testing.examples import ODD_FLOATS, bits
from batchscope.testing.store_fixtures import StoreFixtures


class PartContract(StoreFixtures):
    """What has been finished of something that is still being measured."""

    @pytest.mark.parametrize("content", [{}, [], 0, False, "nan", {"a": [1, 2.5, None], "b": {"c": "\x00 \udcff"}}])
    def test_plain_data_come_back_equal(self, store: Store, content: Any) -> None:
        store.save_part("a key", "f" * 16, "line", content)
        assert store.part("a key") == content
        assert type(store.part("a key")) is type(content)

    def test_records_are_kept_as_their_plain_data(self, store: Store) -> None:
        for key, point in (("trial", make_point()), ("file", make_file_point())):
            store.save_part(key, "f" * 16, "point", point)
            store.save_part(f"{key} again", "f" * 16, "point", to_plain(point))
            assert store.part(key) == store.part(f"{key} again")
            assert bits(from_plain(PointSharpness, store.part(key))) == bits(point)
        assert store.part("trial") == to_plain(make_point())

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_the_floats_of_a_part_keep_their_bits(self, store: Store, value: float) -> None:
        store.save_part("a key", "f" * 16, "losses", {"losses": [value, value]})
        kept = from_plain(dict[str, tuple[float, ...]], store.part("a key"))
        assert bits(kept) == bits({"losses": [value, value]})

    def test_the_first_part_of_a_key_is_kept(self, store: Store) -> None:
        store.save_part("a key", "f" * 16, "point", {"loss": 1.0})
        store.save_part("a key", "e" * 16, "line", {"loss": 2.0})
        store.save_part("a key", "f" * 16, "point", {"loss": 1.0})
        store.save_part("a key of another", "f" * 16, "point", {"loss": 3.0})
        assert (store.part("a key"), store.part("a key of another")) == ({"loss": 1.0}, {"loss": 3.0})

    def test_a_part_is_found_by_its_whole_key_only(self, store: Store) -> None:
        assert store.part("a key") is None
        store.save_part("a key", "f" * 16, "point", [1])
        assert (store.part("a ke"), store.part(""), store.part("A KEY")) == (None, None, None)
        with pytest.raises(StoreError, match="begins with"):
            store.resolve_any("a key")

    def test_a_part_without_content_is_refused(self, store: Store) -> None:
        with pytest.raises(ValueError, match="part needs content, got None for the key 'a key'"):
            store.save_part("a key", "f" * 16, "point", None)
        assert store.part("a key") is None

    def test_parts_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as store:
            store.save_part("a key", "f" * 16, "point", make_point())
        with self.open(tmp_path) as store:
            assert from_plain(PointSharpness, store.part("a key")) == make_point()
