"use strict";
// Draw the panels one after another, top first; then let a legend button pick one batch size out of all of them.
(async () => {
  const text = (id) => document.getElementById(id).textContent;
  const specs = JSON.parse(text("panels"));
  const options = { actions: false, renderer: "svg", ast: false, tooltip: { theme: "custom" } };
  const views = [];
  let chosen = 0;

  const show = (view) => view.signal("chosen", chosen).runAsync();

  const press = (size) => {
    chosen = size === chosen ? 0 : size;
    for (const button of document.querySelectorAll(".legend button")) {
      const on = Number(button.dataset.size) === chosen;
      button.setAttribute("aria-pressed", String(on));
    }
    views.forEach(show);
  };

  document.querySelectorAll(".legend button").forEach((button) =>
    button.addEventListener("click", () => press(Number(button.dataset.size))));

  for (const [index, spec] of specs.entries()) {
    const box = document.getElementById(`panel-${index}`);
    try {
      // Vega marks the rows it is given: every panel gets its own copy of the shared traces
      spec.datasets = { ...spec.datasets, lines: JSON.parse(text("lines")) };
      const { view } = await vegaEmbed(box, spec, options);
      views.push(view);
      if (chosen) show(view);
    } catch (error) {
      box.textContent = "This chart could not be drawn; its numbers are in the table.";
      console.error(error);
    }
  }
  document.documentElement.dataset.drawn = String(views.length);
})();
