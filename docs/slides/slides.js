// A figure takes the room that the text leaves, and grows by half at most; a slide that is too full gets smaller type, down to 60 %.
// What does not even fit then, such as a long table, is shown at a size that can be read, and scrolls.
const fitted = new Set();

async function fit(section) {
  if (!section || fitted.has(section) || section.clientHeight === 0) return;
  fitted.add(section);
  await fill(section);
  section.dataset.fitted = "yes";
}

async function fill(section) {
  await MathJax.typesetPromise([section]);
  const images = [...section.querySelectorAll(".jp-OutputArea-output img")];
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  const lines = [...section.querySelectorAll("pre")];
  const isFull = () => section.scrollHeight > section.clientHeight + 1 ||
    [...section.querySelectorAll(".jp-RenderedHTML, .jp-RenderedMarkdown")].some((box) => box.scrollWidth > box.clientWidth + 1);
  const scaled = (size) => {
    section.style.fontSize = `${size}px`;
    for (const box of lines) {  // a long line makes its own block smaller, not the text around it, and a very long one is wrapped
      box.style.removeProperty("font-size");
      box.style.removeProperty("white-space");
      const share = (box.clientWidth - 4) / box.scrollWidth;
      if (share < 0.75) box.style.whiteSpace = "pre-wrap";
      else if (box.scrollWidth > box.clientWidth) box.style.setProperty("font-size", `${parseFloat(getComputedStyle(box).fontSize) * share}px`, "important");
    }
    images.forEach((image) => { image.style.width = image.style.height = "0"; });
    const last = section.lastElementChild;
    const used = last ? last.offsetTop + last.offsetHeight - section.offsetTop : 0;
    const room = Math.max(680 - Math.max(used, 40), 200) / Math.max(images.length, 1);
    for (const image of images) {
      const scale = Math.min(1160 / image.naturalWidth, room / image.naturalHeight, 1.5);
      image.style.width = `${Math.floor(image.naturalWidth * scale)}px`;
      image.style.height = `${Math.floor(image.naturalHeight * scale)}px`;
    }
    return !isFull();
  };
  for (let size = 27; size >= 16; size -= 1) if (scaled(size)) return;
  scaled(21);
}

const current = () => fit(Reveal.getCurrentSlide());
Reveal.on("ready", current);
Reveal.on("slidechanged", current);
Reveal.on("pdf-ready", () => document.querySelectorAll(".slides section section").forEach(fit));
Reveal.initialize({
  width: 1280, height: 720, margin: 0, center: false, hash: true, slideNumber: "c/t", transition: "none", plugins: [RevealNotes]
});
