"use strict";
// The gallery's filters. Without scripts the page shows all cards and no filters.
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const CARDS_AT_ONCE = 12;
  const list = document.getElementById("cards");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const cards = Array.from(list.children, (element, index) => ({
    element,
    index,
    ...element.dataset,
    change: element.dataset.change === "" ? null : Number(element.dataset.change),
    scores: JSON.parse(element.dataset.scores),
    text: element.querySelector("h3").textContent.toLowerCase(),
  }));
  let limit = CARDS_AT_ONCE;

  const score = (card, row, metric) => card.scores[row]?.[metric];

  function verdict(card, chosen) {
    const value = score(card, chosen.row, chosen.metric);
    if (value === undefined) return "";
    return value >= 0.5 ? "right" : "wrong";
  }

  function matches(card, chosen) {
    return (
      ["split", "drawn", "length", "place"].every((name) => !chosen[name] || card[name] === chosen[name]) &&
      (!chosen.verdict || verdict(card, chosen) === chosen.verdict) &&
      card.text.includes(chosen.text.trim().toLowerCase())
    );
  }

  // The key that cards are ordered by, the largest first; cards without one come last.
  function orderKey(card, chosen) {
    if (!chosen.order) return -card.index;
    const iou = score(card, chosen.row, "iou");
    const keys = {
      best: iou,
      worst: iou === undefined ? undefined : -iou,
      gained: card.change,
      changed: card.change === null ? null : Math.abs(card.change),
    };
    return keys[chosen.order] ?? -Infinity;
  }

  function show() {
    const chosen = Object.fromEntries(new FormData(form));
    const found = cards.filter((card) => matches(card, chosen));
    found.sort((a, b) => orderKey(b, chosen) - orderKey(a, chosen) || a.index - b.index);
    const shown = found.slice(0, limit).map((card) => card.element);
    list.replaceChildren(...shown);
    let all = found.length === 1 ? "1 sentence" : `${found.length} sentences`;
    if (!found.length) all = "No sentence passes all filters; “Show all” lifts them.";
    count.textContent = found.length > limit ? `${all}, the first ${limit} shown` : all;
    more.hidden = found.length <= limit;
  }

  function restart() {
    limit = CARDS_AT_ONCE;
    show();
  }

  form.addEventListener("input", restart);
  form.addEventListener("submit", (event) => event.preventDefault());
  // The fields hold their first values only after the event.
  form.addEventListener("reset", () => setTimeout(restart));
  more.addEventListener("click", () => {
    const next = list.children.length;
    limit += CARDS_AT_ONCE;
    show();
    // The button may be gone now; go on where the new cards begin.
    const heading = list.children[next].querySelector("h3");
    heading.tabIndex = -1;
    heading.focus();
  });
  form.hidden = false;
  show();
})();
