// Without scripts the page is whole: a table, drawn curves, every cell in full. With them all of it moves.
function openLinked() {
  const closed = byId(decodeURIComponent(location.hash.slice(1)))?.closest("details");
  if (closed) {
    closed.open = true;
    closed.scrollIntoView();
  }
}

// `#figures=CELL_ID`: leaves all figures in the document, for the command that writes them to files (reports/figures.py)
async function exportFigures(cellId) {
  const place = data.maps.of.findIndex(([id]) => id === cellId);
  if (place >= 0) {
    byId("inside-cell").selectedIndex = place;
    byId("inside-cell").dispatchEvent(new Event("change"));
  }
  const made = await Promise.all(figures.filter((one) => !one.place.closest("[hidden]")).map((one) => one.pictures()));
  document.body.append(element("pre", { id: "exported", hidden: true }, JSON.stringify(made)));
}

document.documentElement.classList.add("moving");
startCells();
startGrid();
startCurves();
startInside();
addEventListener("hashchange", openLinked);
openLinked();
document.documentElement.dataset.ready = "true";
if (location.hash.startsWith("#figures")) exportFigures(location.hash.slice("#figures=".length));
