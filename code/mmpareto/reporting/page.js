// The page: themes, figures that are drawn when they come into view, switches of rows, sorted tables, downloads.
"use strict";
(() => {
  const { config, widths, sections } = JSON.parse(document.getElementById("--data").textContent);
  const root = document.documentElement;
  const states = new Map(sections.map((section) => [section.id, { ...section, hidden: new Set(section.hidden), seeds: false }]));
  const drawn = new Map(); // figure element -> its views

  // themes: that of the system until the button is pressed
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("--theme");
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    for (const figure of drawn.keys()) draw(figure);
  };
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const themed = () => ({
    ...config,
    background: "transparent",
    font: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif",
    axis: { ...config.axis, labelColor: colour("--soft"), titleColor: colour("--soft"), gridColor: colour("--grid"), domainColor: colour("--line"), tickColor: colour("--line") },
    title: { ...config.title, fontWeight: 600, color: colour("--text") },
    legend: { ...config.legend, labelColor: colour("--text"), titleColor: colour("--soft") },
    range: { heatmap: [0, 1, 2, 3].map((step) => colour(`--heat-${step}`)) },
  });

  // ast: expressions are interpreted, as the page allows no others; 1: errors alone, not that a switched-off layer is empty
  const options = { actions: false, renderer: "svg", ast: true, logLevel: 1, tooltip: { theme: "custom" } };

  const parameters = (state, figure) => {
    const named = figure.names.length > 0;
    const names = named ? figure.names : state.names;
    const hidden = named ? figure.hidden : [...state.hidden];
    const shown = names.map((_, row) => row).filter((row) => !hidden.includes(row));
    return { names, hidden, shown, seeds: state.seeds };
  };
  const listed = (values) => Object.entries(values).map(([name, value]) => ({ name, value }));
  const of = (element) => {
    const state = states.get(element.dataset.section);
    return [state, state.figures[element.dataset.figure]];
  };
  // the switches are the legend
  const bare = (view) => JSON.parse(JSON.stringify(view), (key, value) => (key === "color" && value.field === "row" ? { ...value, legend: null } : value));
  const isShown = (state, panel) => panel.row === null || !state.hidden.has(panel.row);

  async function draw(element) {
    const [state, figure] = of(element);
    for (const view of drawn.get(element) ?? []) view.finalize();
    drawn.set(element, []);
    const places = element.querySelectorAll(".panel");
    const views = figure.panels.map(async ({ view }, number) => {
      const specification = { ...bare(view), width: "container", params: [...listed(parameters(state, figure)), ...(view.params ?? [])], datasets: figure.datasets };
      const result = await vegaEmbed(places[number], specification, { ...options, config: themed() });
      places[number].classList.add("drawn");
      return result;
    });
    drawn.set(element, await Promise.all(views));
    show(element);
  }

  function show(element) {
    const [state, figure] = of(element);
    const places = element.querySelectorAll(".panel");
    figure.panels.forEach((panel, number) => (places[number].hidden = !isShown(state, panel)));
    const values = parameters(state, figure);
    for (const { view } of drawn.get(element) ?? []) {
      for (const [name, value] of Object.entries(values)) view.signal(name, value);
      view.runAsync();
    }
  }

  const observer = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "600px" },
  );
  for (const figure of document.querySelectorAll("figure")) observer.observe(figure);

  // switches of rows
  for (const form of document.querySelectorAll(".switches")) {
    const state = states.get(form.dataset.section);
    const boxes = [...form.querySelectorAll(".chips input")];
    const update = () => {
      state.hidden = new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.value)));
      state.seeds = form.querySelector(".seeds").checked;
      for (const figure of drawn.keys()) if (figure.dataset.section === state.id) show(figure);
    };
    form.addEventListener("change", update);
    form.addEventListener("click", ({ target }) => {
      if (!target.dataset.all) return;
      for (const box of boxes) box.checked = target.dataset.all === "on";
      update();
    });
    for (const box of boxes) box.checked = !state.hidden.has(Number(box.value)); // not as a reload remembers them
    form.querySelector(".seeds").checked = false;
  }

  // switches of lines that are no rows, in their figure
  for (const chips of document.querySelectorAll("figure .chips")) {
    const element = chips.closest("figure");
    const boxes = [...chips.querySelectorAll("input")];
    for (const box of boxes) box.checked = true;
    chips.addEventListener("change", () => {
      of(element)[1].hidden = boxes.filter((box) => !box.checked).map((box) => Number(box.value));
      show(element);
    });
  }

  // tables: a click on a column sorts by it, the next one the other way round
  const number = (text) => Number.parseFloat(text.replace("<", ""));
  for (const table of document.querySelectorAll("main table")) {
    const heads = [...table.querySelectorAll("th")];
    heads.forEach((head, column) =>
      head.addEventListener("click", () => {
        const text = (row) => row.cells[column].textContent.trim();
        const rows = [...table.tBodies[0].rows];
        const numeric = !head.classList.contains("text");
        const first = numeric ? "descending" : "ascending";
        const second = numeric ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? second : first;
        const sign = order === "ascending" ? 1 : -1;
        const compare = (a, b) => {
          if (!numeric) return sign * text(a).localeCompare(text(b), undefined, { numeric: true });
          const [x, y] = [number(text(a)), number(text(b))];
          return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0; // what is no number comes last
        };
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        table.tBodies[0].append(...rows.sort(compare));
      }),
    );
  }

  // downloads: the figure as it is switched now, its panels side by side, on white
  async function image(element, type) {
    const [state, figure] = of(element);
    const views = figure.panels.filter((panel) => isShown(state, panel)).map(({ view }) => ({ ...view, ...(view.layer && { layer: view.layer.filter(({ params }) => !params) }) })); // without what answers the pointer
    const columns = Math.min(figure.columns, views.length);
    const specification = {
      params: listed(parameters(state, figure)), datasets: figure.datasets, columns, padding: 12, background: "white", config,
      concat: views.map((view) => ({ ...view, width: widths[columns] })),
      resolve: { scale: { color: "shared", strokeDash: "shared" }, legend: { color: "shared" } },
    };
    const { view } = await vegaEmbed(document.createElement("div"), specification, options);
    const link = document.createElement("a");
    link.download = `${figure.name}.${type}`;
    link.href = await view.toImageURL(type, 2);
    link.click();
    view.finalize();
  }
  document.addEventListener("click", ({ target }) => {
    if (target.dataset?.download) image(target.closest("figure"), target.dataset.download);
  });

  button.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  system.addEventListener("change", ({ matches }) => setTheme(matches ? "dark" : "light"));
  setTheme(system.matches ? "dark" : "light");
  if (matchMedia("(max-width: 68rem)").matches) for (const details of document.querySelectorAll("nav details, details.long")) details.open = false;
})();
