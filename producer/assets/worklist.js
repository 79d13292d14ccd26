"use strict";
// The worklist: filters over columns that are all in memory, and pages whose lesions are loaded as script files, because
// a page that is opened as a file cannot fetch.
const lesionScreen = (() => {
  const KEPT_PARTS = 80;
  const parts = new Map(), waiting = new Map();
  const find = (id) => document.getElementById(id);
  const state = { page: 0, order: [], patient: -1, filters: {}, evidence: false };
  let index, worstOfPatient, lesionsOfPatient;

  function load(kind, number) {
    const key = kind + "-" + number;
    if (parts.has(key)) {
      const value = parts.get(key);
      parts.delete(key);
      parts.set(key, value);
      return Promise.resolve(value);
    }
    if (!waiting.has(key)) {
      const script = document.createElement("script");
      script.src = "data/" + key + ".js";
      waiting.set(key, {});
      waiting.get(key).promise = new Promise((resolve, reject) => {
        waiting.get(key).resolve = resolve;
        script.addEventListener("error", () => { waiting.delete(key); reject(new Error(script.src)); });
        script.addEventListener("load", () => script.remove());
      });
      document.head.append(script);
    }
    return waiting.get(key).promise;
  }

  function arrive(kind, number, value) {
    const key = kind + "-" + number;
    parts.set(key, value);
    while (parts.size > KEPT_PARTS) parts.delete(parts.keys().next().value);
    waiting.get(key)?.resolve(value);
    waiting.delete(key);
  }

  function select(name, label, options, onchange) {
    const field = cards.make("select", { name });
    for (const [value, text] of options) field.append(cards.make("option", { value }, text));
    field.addEventListener("change", onchange);
    return cards.make("label", null, label, field);
  }

  function range(name, label, step, most) {
    const ends = ["min", "max"].map((end) => {
      const field = cards.make("input", { type: "number", name: name + "-" + end, min: 0, max: most, step, "aria-label": label + ", " + (end === "min" ? "from" : "to") });
      field.addEventListener("input", filter);
      return field;
    });
    return cards.make("label", null, label, cards.make("span", { className: "range" }, ends[0], "to", ends[1]));
  }

  function build() {
    const form = find("filters");
    const classes = index.classes.map((one, place) => [String(1 << place), one.name]);
    const malignant = index.classes.reduce((bits, one, place) => bits | (one.malignant ? 1 << place : 0), 0);
    const sites = index.sites.map((name, place) => [String(place), name]).sort((a, b) => a[1].localeCompare(b[1]));
    const reset = cards.make("button", { type: "reset" }, "Clear filters");
    form.append(
      select("class", "Diagnosis of any image", [["", "any"], [String(malignant), "▲ any that adds to the score"], ...classes], filter),
      select("referred", "Referral", [["", "any"], ["1", "⚑ referred"], ["0", "not referred"]], filter),
      select("site", "Body site", [["", "any"], ...sites], filter),
      range("age", "Age", 1, 120), range("score", "Malignant score", 0.01, 1),
      select("group", "Order", [["lesion", "lesion by lesion"], ["patient", "patients together"]], filter), reset);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => { state.patient = -1; setTimeout(filter); });
    const pager = find("pager");
    for (const [id, text, to] of [["first", "First", () => 0], ["previous", "Previous", () => state.page - 1], ["next", "Next", () => state.page + 1], ["last", "Last", () => pages() - 1]]) {
      pager.append(cards.make("button", { type: "button", id, onclick: () => show(to()) }, text));
    }
    const evidence = cards.make("button", { type: "button", id: "evidence", "aria-pressed": "false", onclick: toggle }, "Show evidence");
    pager.append(evidence, cards.make("span", { className: "keys" },
      ...[["j", "k"], ["n", "p"], ["e"], ["f"]].flatMap((keys, place) => [...keys.map((key) => cards.make("kbd", null, key)), [" next, previous lesion  ", " page  ", " evidence  ", " filters"][place]])));
    const unread = find("unread");
    if (unread) unread.addEventListener("toggle", () => unread.open && !find("unread-rows").firstChild && listUnread(0));
  }

  const pages = () => Math.max(1, Math.ceil(state.order.length / index.partLesions));
  const bound = (form, name, otherwise) => (form.elements[name].value === "" ? otherwise : Number(form.elements[name].value));

  function filter() {
    const form = find("filters"), of = (name) => form.elements[name].value;
    const bits = of("class") === "" ? 0 : Number(of("class")), referred = of("referred"), site = of("site");
    const young = bound(form, "age-min", -Infinity), old = bound(form, "age-max", Infinity);
    const low = bound(form, "score-min", -Infinity), high = bound(form, "score-max", Infinity);
    const limited = young > -Infinity || old < Infinity, matching = [];
    for (let one = 0; one < index.scores.length; one++) {
      if (bits && !(index.diagnoses[one] & bits)) continue;
      if (referred !== "" && index.referred[one] !== Number(referred)) continue;
      if (site !== "" && index.site[one] !== Number(site)) continue;
      if (limited && (index.age[one] < 0 || index.age[one] < young || index.age[one] > old)) continue;
      if (index.scores[one] < low || index.scores[one] > high) continue;
      if (state.patient >= 0 && index.patient[one] !== state.patient) continue;
      matching.push(one);
    }
    if (of("group") === "patient") {
      const worst = (one) => (index.patient[one] < 0 ? one : worstOfPatient[index.patient[one]]);
      matching.sort((a, b) => worst(a) - worst(b) || a - b);
    }
    state.order = matching;
    return show(0);
  }

  async function show(page) {
    state.page = Math.min(Math.max(page, 0), pages() - 1);
    const begin = state.page * index.partLesions, shown = state.order.slice(begin, begin + index.partLesions);
    const asked = state.order, asking = state.page;
    const needed = [...new Set(shown.map((one) => Math.floor(one / index.partLesions)))];
    let loaded;
    try {
      loaded = new Map(await Promise.all(needed.map(async (part) => [part, await load("part", part)])));
    } catch (error) {
      find("said").textContent = "A file of this report cannot be read: " + error.message + ". Copy the whole folder again.";
      return;
    }
    // Another page was asked for in the meantime.
    if (asked !== state.order || asking !== state.page) return;
    const together = find("filters").elements["group"].value === "patient";
    let before = null;
    find("cards").replaceChildren(...shown.flatMap((one) => {
      const images = loaded.get(Math.floor(one / index.partLesions))[one % index.partLesions], patient = images[0].patient;
      const begins = together && (before === null || patient !== before);
      before = patient ?? "";
      return [...(begins ? [cards.make("li", { className: "group" }, patient === undefined ? "No patient reference" : "Patient " + patient)] : []), draw(one, images)];
    }));
    say(shown.length ? begin + 1 : 0, begin + shown.length);
  }

  function draw(one, images) {
    const patient = index.patient[one];
    return cards.lesion(one + 1, images, {
      classes: index.classes,
      patientLesions: patient < 0 ? 0 : lesionsOfPatient[patient],
      onPatient: () => { state.patient = patient; filter(); },
    });
  }

  function say(from, to) {
    const total = index.scores.length, found = state.order.length, spell = (number) => number.toLocaleString("en");
    const of = found === total ? spell(total) + " lesions" : spell(found) + " of " + spell(total) + " lesions that match";
    const patient = state.patient >= 0 ? "; one patient's only (Clear filters shows all)" : "";
    find("said").textContent = found ? "Showing " + spell(from) + " to " + spell(to) + " of " + of + ", page " + spell(state.page + 1) + " of " + spell(pages()) + patient + "." : "No lesion matches" + patient + ".";
    for (const id of ["first", "previous"]) find(id).disabled = state.page === 0;
    for (const id of ["next", "last"]) find(id).disabled = state.page >= pages() - 1;
  }

  function toggle() {
    state.evidence = !state.evidence;
    document.body.classList.toggle("evidence", state.evidence);
    find("evidence").setAttribute("aria-pressed", String(state.evidence));
    find("evidence").textContent = state.evidence ? "Hide evidence" : "Show evidence";
  }

  async function listUnread(number) {
    const rows = await load("unread", number), total = index.totals.unread, step = index.unreadRows;
    const move = (text, to, off) => {
      const button = cards.make("button", { type: "button", onclick: () => listUnread(to) }, text);
      button.disabled = off;
      return button;
    };
    const last = Math.ceil(total / step) - 1;
    find("unread-rows").replaceChildren(cards.unread(rows), ...(last > 0 ? [cards.make("div", { className: "pager" },
      move("Previous", number - 1, number === 0), move("Next", number + 1, number >= last), " page " + (number + 1) + " of " + (last + 1))] : []));
  }

  function move(step) {
    const all = [...document.querySelectorAll(".card")], here = all.indexOf(document.activeElement.closest(".card"));
    const there = all[here < 0 ? (step > 0 ? 0 : all.length - 1) : here + step];
    if (there) { there.focus(); there.scrollIntoView({ block: "nearest" }); }
  }

  async function turn(step) {
    await show(state.page + step);
    document.querySelector(".card")?.focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const keys = {
      j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
      n: () => turn(1), ArrowRight: () => turn(1), p: () => turn(-1), ArrowLeft: () => turn(-1),
      e: toggle, f: () => find("filters").elements[0].focus(),
    };
    // Arrows scroll the page until a lesion is chosen.
    if (!keys[event.key] || (event.key.startsWith("Arrow") && !document.activeElement.closest(".card"))) return;
    event.preventDefault();
    keys[event.key]();
  });

  return {
    part: (number, lesions) => arrive("part", number, lesions),
    unread: (number, rows) => arrive("unread", number, rows),
    start(columns) {
      index = columns;
      const patients = index.patient.reduce((most, one) => Math.max(most, one), -1) + 1;
      worstOfPatient = new Array(patients).fill(-1);
      lesionsOfPatient = new Array(patients).fill(0);
      index.patient.forEach((patient, one) => {
        if (patient < 0) return;
        if (worstOfPatient[patient] < 0) worstOfPatient[patient] = one;
        lesionsOfPatient[patient] += 1;
      });
      build();
      filter();
    },
  };
})();
