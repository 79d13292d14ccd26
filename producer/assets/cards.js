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

  function picture(image, name) {
    if (!image.thumb) return make("div", { className: "none" }, "No picture was drawn; report --all draws every image.");
    const drawn = [make("img", { src: image.thumb, alt: "Thumbnail of " + name, loading: "lazy" })];
    if (image.map) drawn.push(make("img", { src: image.map, className: "map", alt: "Evidence for the diagnosis of " + name }));
    return make("div", { className: "picture", title: image.map ? "Point at it to see where the network looked" : null }, drawn);
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
