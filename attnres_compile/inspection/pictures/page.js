"use strict";
// Titles of the picture as a tip that follows the pointer at once; without this script they are the browser's own.
const tip = document.getElementById("tip");
for (const row of document.querySelectorAll(".skeleton g.row")) {
  const title = row.querySelector("title");
  row.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointermove", (event) => {
  const row = event.target.closest ? event.target.closest("g.row") : null;
  tip.hidden = row === null;
  if (row === null) return;
  tip.textContent = row.dataset.tip;
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 18;
  const top = below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : below;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
});
for (const button of document.querySelectorAll("button.all")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const layers = [...button.closest("section").querySelectorAll(".skeleton details")];
    const open = layers.some((layer) => !layer.open);
    for (const layer of layers) layer.open = open;
    button.textContent = open ? "fold all" : "unfold all";
  });
}
