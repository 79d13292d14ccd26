"use strict";
// Draws lesions. Whatever comes from an archive is set as text or as a picture's data, never as HTML.
const cards = (() => {
  function make(tag, attributes, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined) continue;
      if (name === "className") made.className = value;
      else if (name === "onclick") made.addEventListener("click", value);
      else made.setAttribute(name, value);
    }
    for (const one of content.flat(Infinity)) if (one !== null && one !== undefined) made.append(one);
    return made;
  }

  const percent = (share) => (share >= 0.9995 || share === 0 || share >= 0.1 ? (100 * share).toFixed(1) : (100 * share).toFixed(2)) + " %";

  // Viridis at nine even steps, and how opaque it is where the evidence is largest, in 255ths: as model/pictures.py has it.
  const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
  const MOST_OPAQUE = 200;
  // Pixels a side; the browser spreads them smoothly over the thumbnail.
  const SIDE = 24;

  const blend = (from, to, share) => from + (to - from) * share;

  function colour(share) {
    const at = share * (VIRIDIS.length - 1), first = Math.min(Math.floor(at), VIRIDIS.length - 2);
    return [...VIRIDIS[first].map((value, channel) => blend(value, VIRIDIS[first + 1][channel], at - first)), share * MOST_OPAQUE];
  }

  // For each of SIDE places the two values that it stands between, and how far it is from the first to the second.
  function neighbours(values) {
    const last = values.length - 1;
    return Array.from({ length: SIDE }, (_, place) => {
      const at = Math.min(Math.max((place + 0.5) * values.length / SIDE - 0.5, 0), last), first = Math.floor(at);
      return [values[first], values[Math.min(first + 1, last)], at - first];
    });
  }

  function overlay(rows, name) {
    const spread = neighbours(rows).flatMap(([above, below, down]) =>
      neighbours(above.map((value, column) => blend(value, below[column], down))).map((pair) => blend(...pair)));
    const most = Math.max(...spread) || 1, pixels = new ImageData(SIDE, SIDE);
    spread.forEach((value, place) => pixels.data.set(colour(value / most), 4 * place));
    const made = make("canvas", { className: "map", width: SIDE, height: SIDE, role: "img", "aria-label": "Evidence for the diagnosis of " + name });
    made.getContext("2d").putImageData(pixels, 0, 0);
    return made;
  }

  function picture(image, name) {
    if (!image.thumb) return make("div", { className: "none" }, "No picture was drawn; report --all draws every image.");
    const drawn = [make("img", { src: image.thumb, alt: "Thumbnail of " + name, loading: "lazy" })];
    if (image.evidence) drawn.push(overlay(image.evidence, name));
    return make("div", { className: "picture", title: image.evidence ? "Point at it to see what speaks for the diagnosis" : null }, drawn);
  }

  function bars(image, classes) {
    const order = classes.map((_, place) => place).sort((a, b) => image.probabilities[b] - image.probabilities[a]);
    const rows = order.map((place) => {
      const one = classes[place], share = image.probabilities[place];
      const fill = make("span", { className: one.malignant ? "fill malignant" : "fill" });
      fill.style.width = 100 * share + "%";
      return make("tr", { className: place === image.diagnosis ? "said" : null },
        make("th", { scope: "row" }, (one.malignant ? "▲ " : "") + one.name, place === image.diagnosis ? " (diagnosis)" : null),
        make("td", { className: "number" }, percent(share)),
        make("td", { "aria-hidden": "true" }, make("span", { className: "track" }, fill)));
    });
    return make("table", { className: "bars" }, make("caption", null, "Probabilities; ▲ adds to the malignant score"), make("tbody", null, rows));
  }

  function facts(pairs) {
    return make("dl", null, pairs.filter(([, value]) => value !== undefined && value !== null)
      .map(([name, value]) => [make("dt", null, name), make("dd", null, value)]));
  }

  function tags(high, referred) {
    const made = [];
    if (high !== undefined) made.push(make("span", { className: high ? "tag high" : "tag low" }, high ? "prioritised" : "not prioritised"));
    if (referred) made.push(make("span", { className: "tag referred" }, "⚑ referred: " + referred));
    return made;
  }

  function lesion(rank, images, told) {
    const worst = images[0], name = worst.image || worst.path;
    const others = told.patientLesions > 1
      ? [make("button", { type: "button", className: "plain", onclick: told.onPatient }, worst.patient), " (" + told.patientLesions + " lesions)"]
      : worst.patient;
    const referred = images.map((one) => one.referred).find(Boolean);
    const made = make("li", { className: "card", tabindex: "0", id: "rank-" + rank, "data-rank": rank, "aria-label": "Rank " + rank + ", " + name },
      make("div", { className: "head" },
        make("h3", null, "#" + rank.toLocaleString("en")),
        make("span", { className: "score" }, "malignant score " + worst.score.toFixed(3)),
        tags(worst.prioritised, referred),
        images.length > 1 ? make("span", null, images.length + " images") : null),
      picture(worst, name), bars(worst, told.classes),
      facts([["Image", worst.image], ["File", worst.path], ["Lesion", worst.lesion], ["Patient", others],
        ["Age", worst.age === undefined ? "unknown" : worst.age], ["Sex", worst.sex || "unknown"], ["Site", worst.site || "unknown"],
        ["Confidence", percent(worst.confidence)]]));
    if (images.length > 1) {
      const rest = images.slice(1).map((one) => make("li", null, picture(one, one.image || one.path),
        make("div", null, one.image || one.path), make("div", null, one.score.toFixed(3) + ", " + told.classes[one.diagnosis].name),
        one.referred ? make("div", null, "⚑ referred: " + one.referred) : null));
      made.append(make("details", { className: "others" },
        make("summary", null, "The lesion's other images (" + rest.length + "), which score lower"), make("ul", null, rest)));
    }
    return made;
  }

  function unread(rows) {
    const body = rows.map(([state, reason, image, path, lesionId, patient]) => make("tr", null,
      make("th", { scope: "row" }, image || path || "a row that names no image"),
      [reason.replaceAll("_", " ") + (state === "quarantined" ? " (quarantined)" : ""), path, lesionId, patient].map((cell) => make("td", null, cell || "")))) ;
    const head = ["Image", "Reason", "File", "Lesion", "Patient"].map((name) => make("th", { scope: "col" }, name));
    return make("div", { className: "scroll" }, make("table", null, make("thead", null, make("tr", null, head)), make("tbody", null, body)));
  }

  return { make, lesion, unread };
})();
