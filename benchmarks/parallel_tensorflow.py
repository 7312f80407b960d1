"""What does TensorFlow's MirroredStrategy take for the same work, on two logical CPU devices of two cores?

Run by `parallel.py --peers` under an environment of its own, without torch. First prints its versions; then each line
of JSON on its input, [task, batch size, steps], is answered by seconds per step, or for 0 steps by the number of the
model's weights.

As fast as its guides make it: the steps of a window run inside one `tf.function` (`strategy.run` in a `tf.range`), each
replica has a `tf.data` pipeline of its own, which gathers whole batches from memory and fetches ahead. The models are
those of `batchscope.tasks` in TensorFlow's layout (channels innermost, the only one its CPU convolutions know).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

REPLICAS = 2
SETTLED = 0.05  # seconds after a window: the pipeline has filled its buffers, and is not in the way of another loop


def mlp() -> tf.keras.Model:
    """784 pixels, 128 hidden units, 10 classes."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [tf.keras.Input((28, 28)), layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )


def cnn() -> tf.keras.Model:
    """Two convolutions of stride 2 with 8 and 16 channels, and one linear layer."""
    layers = tf.keras.layers
    like = {"kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"}
    return tf.keras.Sequential(
        [
            tf.keras.Input((28, 28, 1)),
            layers.Conv2D(8, **like),
            layers.Conv2D(16, **like),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


TASKS: dict[str, tuple[Callable[[], tf.keras.Model], dict[str, float]]] = {
    "fashion-mnist-mlp": (mlp, {"learning_rate": 0.05}),
    "fashion-mnist-cnn": (cnn, {"learning_rate": 0.01, "momentum": 0.9}),
}


def batches(images: tf.Tensor, labels: tf.Tensor, size: int) -> tf.data.Dataset:
    """Batches without end, gathered whole in the order of a new permutation in every epoch."""

    def epoch(_: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.shuffle(tf.range(len(labels)))
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order, (-1, size)))

    orders = tf.data.Dataset.range(sys.maxsize).flat_map(epoch)
    return orders.map(lambda chosen: (tf.gather(images, chosen), tf.gather(labels, chosen))).prefetch(2)


def training(strategy: tf.distribute.Strategy, name: str, size: int, examples: tuple[tf.Tensor, tf.Tensor]) -> Any:
    """(the model, what takes so many steps) of a task at a batch of `size` examples in all."""
    make, options = TASKS[name]
    with strategy.scope():
        model = make()
        optimizer = tf.keras.optimizers.SGD(**options)
        optimizer.build(model.trainable_variables)
    shares = strategy.distribute_datasets_from_function(lambda _: batches(*examples, size // REPLICAS))
    iterator = iter(shares)

    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
            loss = tf.reduce_sum(losses) / size  # gradients are summed over the replicas
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    @tf.function
    def steps(count: tf.Tensor) -> None:
        for _ in tf.range(count):
            strategy.run(step, args=next(iterator))

    return model, steps


def main() -> None:
    """Answer until the input ends."""
    folder, cores = Path(sys.argv[1]), {int(core) for core in sys.argv[2].split(",")}
    os.sched_setaffinity(0, cores)
    tf.get_logger().setLevel("ERROR")  # every task and batch size is a function of its own: it calls that retracing
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * REPLICAS
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
    images, labels = (tf.constant(np.load(folder / f"{name}.npy")) for name in ("images", "labels"))
    made: dict[tuple[str, int], Any] = {}
    print(json.dumps({"tensorflow": tf.__version__, "keras": tf.keras.__version__}), flush=True)
    for name, size, steps in map(json.loads, sys.stdin):
        if (name, size) not in made:
            shaped = images[..., tf.newaxis] if name.endswith("cnn") else images
            made[name, size] = training(strategy, name, size, (shaped, labels))
        model, run = made[name, size]
        if steps == 0:
            print(json.dumps(model.count_params()), flush=True)
            continue
        count, start = tf.constant(steps), time.perf_counter()
        run(count)
        seconds = (time.perf_counter() - start) / steps
        time.sleep(SETTLED)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
