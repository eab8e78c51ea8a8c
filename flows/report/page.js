// The table of questions. Texts of questions, answers and replies go into the page as text only, never as markup.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  // An element with properties and children; strings become text, null is left out.
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children.filter((child) => child !== null));
    return element;
  };

  // ---- Questions ----
  const data = JSON.parse(byId("items-data").textContent);
  const PAGE = 25;
  const state = { page: 0, shown: [], open: null };
  const control = data.arms.indexOf(data.control);
  const fixed = (value, digits = 2) => value === null ? "\u2014" : value.toFixed(digits).replace("-", "\u2212").replace(/^\u2212(0\.?0*)$/, "$1");
  const signed = (value) => value === null ? "\u2014" : (value > 0 ? "+" : "") + fixed(value);
  const text = (index) => index === null ? null : data.strings[index];

  const options = (select, values, chosen) => {
    for (const [value, label] of values) select.append(make("option", { value, textContent: label, selected: value === chosen }));
  };
  const kinds = [...new Set(data.items.map((item) => item.kind))].sort();
  options(byId("filter-kind"), [["*", "all"], ...kinds.map((kind) => [kind, kind || "not named"])], "*");
  options(byId("filter-arm"), data.arms.filter((arm) => arm !== data.control).map((arm) => [arm, arm]), data.primary.arm);
  options(byId("filter-criterion"), data.criteria.map((name) => [name, name]), data.primary.criterion);

  const haystacks = new Map();
  const haystack = (item) => {
    if (!haystacks.has(item)) {
      haystacks.set(item, [item.id, item.question, ...item.references, ...item.answers.map((answer) => text(answer.text) ?? "")].join("\n").toLowerCase());
    }
    return haystacks.get(item);
  };
  const numbers = (item) => {
    const scores = item.scores[data.criteria.indexOf(byId("filter-criterion").value)];
    const [arm, base] = [scores[data.arms.indexOf(byId("filter-arm").value)], scores[control]];
    const known = scores.filter((score) => score !== null);
    return {
      item, arm, base,
      difference: arm === null || base === null ? null : arm - base,
      spread: known.length ? Math.max(...known) - Math.min(...known) : null,
    };
  };
  const unretrieved = (item) => item.gold.length > 0 && !item.hits.some(([passage]) => item.gold.includes(passage));
  const shows = {
    all: () => true,
    better: (row) => row.difference > 0,
    worse: (row) => row.difference !== null && row.difference < 0,
    equal: (row) => row.difference === 0,
    differ: (row) => row.spread >= 2,
    missing: (row) => row.item.answers.some((answer) => answer.text === null || answer.runs.some((run) => run[2] === null)),
    unretrieved: (row) => unretrieved(row.item),
    unanswerable: (row) => !row.item.answerable,
  };
  // Larger first; what is missing last.
  const sorts = {
    size: (row) => row.difference === null ? -1 : Math.abs(row.difference),
    worst: (row) => row.difference === null ? -Infinity : -row.difference,
    best: (row) => row.difference === null ? -Infinity : row.difference,
    spread: (row) => row.spread ?? -1,
    id: () => 0,
  };

  const list = () => {
    const [wanted, kind] = [byId("filter-text").value.trim().toLowerCase(), byId("filter-kind").value];
    const [keep, key] = [shows[byId("filter-show").value], sorts[byId("filter-sort").value]];
    state.shown = data.items
      .filter((item) => (kind === "*" || item.kind === kind) && (!wanted || haystack(item).includes(wanted)))
      .map(numbers)
      .filter(keep)
      .sort((one, other) => key(other) - key(one) || (one.item.id < other.item.id ? -1 : 1));
    state.page = 0;
    draw();
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE));
    const start = state.page * PAGE;
    const rows = state.shown.slice(start, start + PAGE);
    byId("head-control").textContent = data.control;
    byId("head-arm").textContent = byId("filter-arm").value;
    byId("items").tBodies[0].replaceChildren(...rows.map((row, offset) => make("tr", {},
      make("td", {}, make("button", { type: "button", className: "open", textContent: row.item.question, onclick: () => open(start + offset) })),
      make("td", { textContent: row.item.kind }),
      make("td", { className: "n", textContent: fixed(row.base) }),
      make("td", { className: "n", textContent: fixed(row.arm) }),
      make("td", { className: row.difference > 0 ? "n up" : row.difference < 0 ? "n down" : "n", textContent: signed(row.difference) }),
      make("td", { className: "n", textContent: fixed(row.spread) }))));
    byId("items-status").textContent = state.shown.length
      ? `${state.shown.length} of ${data.items.length} questions; ${start + 1} to ${start + rows.length} shown`
      : "No question fits. Clear the search, or show all.";
    byId("page-place").textContent = `page ${state.page + 1} of ${pages}`;
    byId("page-back").disabled = state.page === 0;
    byId("page-on").disabled = state.page >= pages - 1;
  };

  // ---- One question ----
  const passage = (item, index, hit, before = "not retrieved: ") => {
    const { id, title, heading, text: body } = data.passages[index];
    const legs = hit === undefined ? "" : [["words", hit[3]], ["meaning", hit[4]]].filter(([, rank]) => rank !== null).map(([leg, rank]) => `${leg} ${rank}`).join(", ");
    const gold = item.gold.includes(index);
    return make("details", { className: "passage", open: gold && hit !== undefined && item.gold.length < 3 },
      make("summary", {},
        hit === undefined ? before : `${hit[1]}. `,
        [title, heading].filter(Boolean).join(" \u203a ") || id,
        gold ? make("span", { className: "badge gold", textContent: "gold" }) : null,
        legs ? make("span", { className: "badge", textContent: `rank by ${legs}` }) : null),
      make("p", { textContent: text(body) }),
      make("small", { textContent: hit === undefined ? id : `${id} \u00b7 score ${hit[2]}${hit[5] === null ? "" : ` \u00b7 reranker ${hit[5]}`}` }));
  };

  const cell = (tag, value, className = "") => make(tag, { textContent: value, className });
  const runs = (answer) => {
    const table = make("table", {}, make("caption", { textContent: "Judge runs" }), make("thead", {}, make("tr", {},
      ...[["Criterion", ""], ["Run", "n"], ["Score", "n"], ["Reply", ""]].map(([name, kind]) => Object.assign(cell("th", name, kind), { scope: "col" })))));
    table.append(make("tbody", {}, ...answer.runs.map(([criterion, run, score, reply, error]) => make("tr", {},
      cell("td", data.criteria[criterion]), cell("td", run + 1, "n"),
      score === null ? cell("td", "missing", "n missing") : cell("td", score, "n"),
      make("td", {}, text(reply), error === null ? null : make("span", { className: "missing", textContent: ` no score: ${text(error).replaceAll("_", " ")}` }))))));
    const metrics = Object.entries(answer.metrics ?? {}).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
    return make("details", {}, make("summary", { textContent: `${answer.runs.length} judge runs${metrics ? ", metrics" : ""}` }),
      metrics ? make("p", { className: "points", textContent: metrics }) : null,
      make("div", { className: "scroll", tabIndex: 0 }, table));
  };
  const points = (answer) => data.criteria.map((name, place) => {
    const scores = answer.runs.filter((run) => run[0] === place && run[2] !== null).map((run) => run[2]);
    return `${name} ${scores.length ? fixed(scores.reduce((sum, score) => sum + score, 0) / scores.length) : "\u2014"}`;
  }).join(" \u00b7 ");
  const answered = (item, answer) => {
    const who = data.contestants[answer.contestant];
    const badge = (label, bad) => make("span", { className: bad ? "badge bad" : "badge", textContent: label });
    const shown = answer.shown.map((index) => item.hits.find(([passage]) => passage === index)?.[1] ?? data.passages[index].id);
    const cited = (answer.cited ?? []).map((index) => item.hits.find(([passage]) => passage === index)?.[1] ?? data.passages[index].id);
    return make("article", { className: "answer" },
      make("h4", { textContent: who.id }),
      who.arm === data.control ? badge("control") : null,
      who.arm === data.primary.arm ? badge("primary") : null,
      answer.sample ? badge(`sample ${answer.sample + 1}`) : null,
      answer.abstained ? badge("abstained") : null,
      answer.finish === "length" ? badge("stopped at the token limit", true) : null,
      answer.cut ? badge(`${answer.cut.length} passages left out: prompt too long`, true) : null,
      answer.text === null ? make("blockquote", { className: "missing", textContent: `no answer: ${answer.error ?? "no reason given"}` }) : make("blockquote", { textContent: text(answer.text) }),
      answer.runs.length ? make("p", { className: "points", textContent: points(answer) }) : null,
      make("small", { textContent: [
        `${answer.tokens[0]} + ${answer.tokens[1]} tokens`, `${answer.ms} ms`,
        shown.length ? `passages shown: ${shown.join(", ")}` : "no passages shown",
        cited.length ? `cited: ${cited.join(", ")}` : "",
      ].filter(Boolean).join(" \u00b7 ") }),
      answer.runs.length ? runs(answer) : null);
  };

  const dialog = byId("item");
  const open = (index) => {
    state.open = index;
    const { item } = state.shown[index];
    const missed = item.gold.filter((gold) => !item.hits.some(([passage]) => passage === gold));
    // Parents of passages are shown to the model, but not searched.
    const wider = [...new Set(item.answers.flatMap((answer) => [...answer.shown, ...(answer.cut ?? [])]))]
      .filter((index) => !item.gold.includes(index) && !item.hits.some(([passage]) => passage === index));
    const table = make("table", {},
      make("caption", { textContent: "Scores of the arms on this question" }),
      make("thead", {}, make("tr", {}, Object.assign(cell("th", "Arm"), { scope: "col" }), ...data.criteria.map((name) => Object.assign(cell("th", name, "n"), { scope: "col" })))),
      make("tbody", {}, ...data.arms.map((arm, place) => make("tr", {}, Object.assign(cell("th", arm), { scope: "row" }), ...item.scores.map((row) => cell("td", fixed(row[place]), "n"))))));
    byId("item-body").replaceChildren(
      make("small", { textContent: [item.id, item.kind, `cluster ${item.cluster}`, item.answerable ? "" : "has no answer in the documents"].filter(Boolean).join(" \u00b7 ") }),
      make("h2", { id: "item-title", textContent: item.question }),
      make("h3", { textContent: item.references.length > 1 ? "References" : "Reference" }),
      make("ul", {}, ...item.references.map((reference) => make("li", { textContent: reference }))),
      make("details", { open: true }, make("summary", { textContent: "Scores by arm" }), make("div", { className: "scroll", tabIndex: 0 }, table)),
      make("h3", { textContent: "Passages" }),
      item.hits.length || missed.length ? "" : make("p", { className: "missing", textContent: "Nothing was retrieved for this question." }),
      ...item.hits.map((hit) => passage(item, hit[0], hit)),
      ...missed.map((gold) => passage(item, gold)),
      ...wider.map((index) => passage(item, index, undefined, "shown around them: ")),
      make("h3", { textContent: "Answers" }),
      data.reply_limit === null ? "" : make("p", { className: "missing", textContent: `Judge replies are cut after ${data.reply_limit} characters here; judgements.parquet has them whole.` }),
      ...item.answers.map((answer) => answered(item, answer)));
    byId("item-place").textContent = `${index + 1} of ${state.shown.length}`;
    byId("item-back").disabled = index === 0;
    byId("item-on").disabled = index === state.shown.length - 1;
    history.replaceState(null, "", `#question=${encodeURIComponent(item.id)}`);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };
  dialog.addEventListener("close", () => {
    history.replaceState(null, "", "#questions");
    const row = state.open - state.page * PAGE;
    document.querySelectorAll("#items .open")[row]?.focus();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  byId("item-close").addEventListener("click", () => dialog.close());
  byId("item-back").addEventListener("click", () => open(state.open - 1));
  byId("item-on").addEventListener("click", () => open(state.open + 1));

  const turn = (pages) => { state.page += pages; draw(); byId("questions").scrollIntoView(); };
  byId("page-back").addEventListener("click", () => turn(-1));
  byId("page-on").addEventListener("click", () => turn(1));
  let waiting;
  byId("filter-text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(list, 120); });
  byId("filters").addEventListener("change", list);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  list();

  const linked = location.hash.startsWith("#question=") ? decodeURIComponent(location.hash.slice(10)) : null;
  const found = state.shown.findIndex((row) => row.item.id === linked);
  if (found >= 0) {
    state.page = Math.floor(found / PAGE);
    draw();
    open(found);
  }
})();
