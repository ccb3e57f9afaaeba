// Starts the page: theme, curves, trajectories. What goes wrong is shown at the top of the page.

function fail(error) {
  const place = document.getElementById("failure");
  place.textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old for the curves and trajectories of this page; one of 2023 or later shows them."
    : `The page could not be shown in full: ${error}`;
  place.hidden = false;
}

function themeSwitch(button) {
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; label(); });
  label();
}

async function start() {
  themeSwitch(document.getElementById("theme"));
  const curves = await unpackData("curves-data");
  buildCurves(curves, document.getElementById("curve-controls"), document.getElementById("charts"));
  new Browser(await unpackData("trajectories-data"), curves.runs.map((run) => run.name), document.getElementById("browser"));
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => { fail(error); throw error; });
