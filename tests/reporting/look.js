// What is wrong with how a page looks, as a list of sentences. Run in the page.
(() => {
  const wrong = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth) {
    const wide = [...document.body.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5
      && !e.closest(".scroll, pre")).slice(0, 5).map(e => e.tagName + "." + (e.getAttribute("class") || e.id));
    wrong.push(`the page is ${root.scrollWidth} wide in ${innerWidth}: ${wide.join(", ")}`);
  }

  const parse = text => {
    const found = text.match(/rgba?\(([^)]*)\)/);
    if (!found) return null;
    const [r, g, b, a] = found[1].split(/[ ,/]+/).map(Number);
    return { rgb: [r, g, b], a: a === undefined ? 1 : a };
  };
  const over = (top, below) => top.rgb.map((c, i) => c * top.a + below[i] * (1 - top.a));
  const luminance = rgb => {
    const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  const groundOf = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour && colour.a > 0) layers.push(colour);
      if (colour && colour.a === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), canvas);
  };
  const groundInSvg = (text, svg) => {  // the last filled shape that was drawn before the text and lies around it
    const box = text.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    let ground = groundOf(svg.parentElement);
    for (const shape of svg.querySelectorAll("path, rect, image, circle")) {
      if (shape.closest("defs, clipPath") || !(shape.compareDocumentPosition(text) & 4)) continue;
      const b = shape.getBoundingClientRect();
      if (x < b.left || x > b.right || y < b.top || y > b.bottom) continue;
      if (shape.tagName === "image") { wrong.push(`text on an image: ${text.textContent}`); continue; }
      const fill = parse(getComputedStyle(shape).fill);
      if (fill && fill.a > 0 && getComputedStyle(shape).fill !== "none") ground = over(fill, ground);
    }
    return ground;
  };

  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const box = element.getBoundingClientRect();
    if (!node.textContent.trim() || element.closest("title, desc, style") || !box.width) continue;
    seen += 1;
    const svg = element.closest("svg");
    const style = getComputedStyle(element);
    const ground = svg ? groundInSvg(element, svg) : groundOf(element);
    const ink = over(parse(svg ? style.fill : style.color), ground);
    const found = contrast(ink, ground);
    const words = `"${node.textContent.trim().slice(0, 40)}"`;
    if (found < 4.5) wrong.push(`contrast ${found.toFixed(2)} of ${words} (${ink} on ${ground})`);
    if (!svg) {
      if (parseFloat(style.fontSize) < 9) wrong.push(`${words} is ${style.fontSize}`);
      continue;
    }
    const matrix = element.getScreenCTM();
    const size = parseFloat(style.fontSize) * Math.hypot(matrix.a, matrix.b);
    if (size < 9) wrong.push(`${words} in ${svg.getAttribute("aria-labelledby")} is ${size.toFixed(1)} pixels`);
    const frame = svg.getBoundingClientRect();
    const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
    if (out > 1) wrong.push(`${words} stands ${out.toFixed(1)} pixels outside ${svg.getAttribute("aria-labelledby")}`);
  }
  // words of one figure that stand on each other
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const boxes = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim()).map(t => [t, t.getBoundingClientRect()]);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const [a, b] = [boxes[i][1], boxes[j][1]];
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1 && y > 0.3 * Math.min(a.height, b.height))
        wrong.push(`"${boxes[i][0].textContent}" and "${boxes[j][0].textContent}" overlap in ${svg.getAttribute("aria-labelledby")}`);
    }
  }
  return { wrong, seen };
})()
