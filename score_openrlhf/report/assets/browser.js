// The trajectory browser: filters, a list of ten, attempt, hint and revision side by side.

const PAGE_SIZE = 10;
const OUTCOMES = {
  all: "all", i2c: "wrong to right", c2i: "right to wrong", stays_wrong: "stays wrong", stays_right: "stays right",
};

// A row as trajectories.py writes it.
function unpack(row, run) {
  const text = (index) => (index < 0 ? null : run.texts[index]);
  const sample = (value) => value && { text: text(value[0]), textIndex: value[0], tokens: value[1], logProb: value[2],
    truncated: value[3] === 1, version: value[4] };
  const [file, id, problem, answer, attempt, guidance, revision, grade1, grade2, leak, failure, masked, place, facts] = row;
  return { file, id: text(id), problem: text(problem), answer: text(answer), attempt: sample(attempt), guidance: sample(guidance),
    revision: sample(revision), grade1: text(grade1), grade2: text(grade2), leak: leak === 1, failure: text(failure),
    masked: text(masked), place, facts };
}

const hasRevision = (row) => row[6] !== null && row[10] < 0;

function outcomeOf(row, run) {
  if (!hasRevision(row)) return null;
  const [before, after] = [row[7], row[8]].map((index) => run.texts[index] === "right");
  return before ? (after ? "stays_right" : "c2i") : after ? "i2c" : "stays_wrong";
}

const isTruncated = (row) => [row[4], row[5], row[6]].some((sample) => sample && sample[3] === 1);

class Browser {
  constructor(runs, names, container) {
    this.runs = runs;
    this.names = names;
    this.state = { run: 0, file: this.defaultFile(0), outcome: "all", leak: false, truncated: false, failed: false, query: "", page: 0 };
    this.list = el("div", { class: "trajectory-list" });
    this.note = el("p", { class: "hint-line" });
    this.fileSelect = el("select", { id: "file", onchange: (event) => this.set({ file: event.target.value }) });
    this.outcomes = el("fieldset", { class: "switch", id: "outcome" });
    this.pagers = [this.pager(), this.pager()];
    container.append(this.filters(), this.note, this.pagers[0].node, this.list, this.pagers[1].node);
    this.fillFiles();
    this.update();
  }

  get run() { return this.runs[this.state.run]; }

  // What a reader wants first: how the trained pair does on problems it never saw.
  defaultFile(run) {
    const files = this.runs[run].files;
    const heldOut = files.findLastIndex((file) => file.held_out);
    return files.length === 0 ? "all" : String(heldOut >= 0 ? heldOut : files.length - 1);
  }

  filters() {
    const runSelect = el("select", { id: "run", onchange: (event) => {
      const run = Number(event.target.value);
      this.state.run = run;
      this.fillFiles();
      this.set({ file: this.defaultFile(run) });
    } }, ...this.names.map((name, index) => el("option", { value: index }, name)));
    const check = (key, label) => el("label", {}, el("input", { type: "checkbox", id: key,
      onchange: (event) => this.set({ [key]: event.target.checked }) }), label);
    let waiting = null;
    const search = el("input", { type: "search", id: "search", placeholder: "Search the texts", "aria-label": "Search the texts",
      oninput: (event) => {
        clearTimeout(waiting);
        waiting = setTimeout(() => this.set({ query: event.target.value.trim().toLowerCase() }), 150);
      } });
    return el("div", { class: "controls" },
      this.runs.length > 1 ? el("label", { class: "field" }, "Run", runSelect) : null,
      el("label", { class: "field" }, "From", this.fileSelect),
      search, this.outcomes,
      el("fieldset", { class: "switch" }, el("legend", {}, "Only"), check("leak", "leak"), check("truncated", "truncated"),
        check("failed", "failed or masked")));
  }

  fillFiles() {
    const option = (file, index) => el("option", { value: index }, file.label);
    const entries = this.run.files.map((file, index) => [file, index]);
    const group = (label, heldOut) => {
      const own = entries.filter(([file]) => file.held_out === heldOut);
      return own.length === 0 ? null : el("optgroup", { label }, ...own.map(([file, index]) => option(file, index)));
    };
    this.fileSelect.replaceChildren(...[el("option", { value: "all" }, "everything"), el("option", { value: "held_out" }, "all evaluations"),
      el("option", { value: "training" }, "all training steps"), group("Held-out problems", true), group("Training steps", false)]
      .filter((node) => node !== null));
  }

  set(changes) {
    Object.assign(this.state, { page: 0 }, changes);
    this.update();
  }

  // Rows that pass every filter, and how many would by outcome if the outcome were not filtered.
  select() {
    const { file, outcome, leak, truncated, failed, query } = this.state;
    const found = query ? this.run.texts.map((text) => text.toLowerCase().includes(query)) : null;
    const contains = (row) => [row[1], row[2], row[3], row[4]?.[0], row[5]?.[0], row[6]?.[0]].some((index) => found[index]);
    const fromFile = (row) => file === "all" || (file === "held_out" ? this.run.files[row[0]].held_out
      : file === "training" ? !this.run.files[row[0]].held_out : row[0] === Number(file));
    const counts = Object.fromEntries(Object.keys(OUTCOMES).map((name) => [name, 0]));
    const rows = this.run.rows.filter((row) => {
      if (!fromFile(row) || (leak && row[9] !== 1) || (truncated && !isTruncated(row))) return false;
      if (failed && row[10] < 0 && row[11] < 0) return false;
      if (found && !contains(row)) return false;
      const own = outcomeOf(row, this.run);
      counts.all++;
      if (own) counts[own]++;
      return outcome === "all" || outcome === own;
    });
    return { rows, counts };
  }

  update() {
    this.fileSelect.value = this.state.file;
    const { rows, counts } = this.select();
    const total = this.run.total, kept = this.run.rows.length;
    this.note.textContent = kept < total
      ? `The page holds ${kept.toLocaleString("en")} of the run's ${total.toLocaleString("en")} trajectories, drawn evenly from its steps.` : "";
    this.note.hidden = this.note.textContent === "";
    this.outcomeSwitch(counts);
    const pages = Math.max(1, Math.ceil(rows.length / PAGE_SIZE));
    const first = this.state.page * PAGE_SIZE, shown = rows.slice(first, first + PAGE_SIZE);
    const position = rows.length === 0 ? "none" : `${(first + 1).toLocaleString("en")}–${(first + shown.length).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    for (const pager of this.pagers) {
      pager.position.textContent = position;
      pager.previous.disabled = this.state.page === 0;
      pager.next.disabled = this.state.page >= pages - 1;
    }
    this.pagers[1].node.hidden = shown.length < 3;
    const empty = this.run.total === 0 ? "The run left no trajectories." : "No trajectory fits these filters.";
    this.list.replaceChildren(...(shown.length === 0 ? [el("p", { class: "empty" }, empty)]
      : shown.map((row) => this.article(unpack(row, this.run), outcomeOf(row, this.run)))));
  }

  outcomeSwitch(counts) {
    const focused = this.outcomes.contains(document.activeElement);
    this.outcomes.replaceChildren(el("legend", {}, "Outcome"), ...Object.entries(OUTCOMES).map(([name, label]) =>
      el("label", {}, el("input", { type: "radio", name: "outcome", value: name, checked: name === this.state.outcome,
        onchange: () => this.set({ outcome: name }) }), label, el("small", {}, counts[name].toLocaleString("en")))));
    if (focused) this.outcomes.querySelector("input:checked").focus();
  }

  pager() {
    const turn = (by) => {
      this.set({ page: this.state.page + by });
      this.pagers[0].node.scrollIntoView({ block: "nearest" });
    };
    const previous = el("button", { type: "button", class: "previous", onclick: () => turn(-1) }, "← Previous");
    const next = el("button", { type: "button", class: "next", onclick: () => turn(1) }, "Next →");
    const position = el("span", { class: "position", role: "status" });
    return { node: el("div", { class: "pager" }, previous, position, next), previous, next, position };
  }

  article(row, outcome) {
    const badge = (text, kind) => el("span", { class: `badge ${kind}` }, text);
    const kinds = { i2c: "good", stays_right: "calm", c2i: "bad", stays_wrong: "calm" };
    const badges = [
      outcome ? badge(OUTCOMES[outcome], kinds[outcome]) : null,
      row.leak ? badge("leak", "bad") : null,
      row.failure ? badge(`failed: ${row.failure}`, "bad") : null,
      row.masked ? badge(`masked: ${row.masked}`, "warn") : null,
      ...Object.entries(row.facts).map(([name, value]) => badge(`${name.replaceAll("_", " ")} ${formatNumber(value)}`, "calm")),
    ];
    const [before, after] = row.attempt && row.revision ? difference(row.attempt.text, row.revision.text)
      : [row.attempt, row.revision].map((sample) => sample && [{ text: sample.text, changed: false }]);
    const plain = row.guidance && [{ text: row.guidance.text, changed: false }];
    return el("article", {},
      el("header", {}, el("b", {}, row.id), el("span", { class: "muted" },
        `${this.run.files[row.file].label}, attempt ${row.place[0] + 1}, hint ${row.place[1] + 1}`), ...badges),
      el("div", { class: "problem" }, el("p", { class: "sample" }, row.problem),
        el("p", { class: "gold" }, "Answer ", el("b", { class: "sample" }, row.answer))),
      el("div", { class: "turns" },
        this.turn("Attempt", row.attempt, row.grade1, before, "del"),
        this.turn("Hint", row.guidance, null, plain, "mark", "a fixed text, not kept"),
        this.turn("Revision", row.revision, row.grade2, after, "ins")));
  }

  turn(title, sample, grade, pieces, tag, missing = "none") {
    const verdict = grade ? el("span", { class: `grade ${grade === "right" ? "right" : "wrong"}` }, grade) : null;
    const cut = sample?.truncated ? el("span", { class: "badge warn" }, "truncated") : null;
    if (!sample) return el("div", { class: "turn" }, el("h4", {}, title), el("p", { class: "empty" }, missing));
    const body = el("p", { class: "sample", tabindex: sample.text.length > 600 ? "0" : null },
      ...pieces.map((piece) => (piece.changed ? el(tag, {}, piece.text) : document.createTextNode(piece.text))));
    if (sample.text === "") body.append(el("i", { class: "muted" }, "empty"));
    return el("div", { class: "turn" }, el("h4", {}, title, verdict, cut), body,
      el("p", { class: "muted small" }, `${sample.tokens} ${sample.tokens === 1 ? "token" : "tokens"}, log p ${formatNumber(sample.logProb)}, policy after ${sample.version} ${sample.version === 1 ? "update" : "updates"}`));
  }
}
