// Values under the pointer, or under the arrow keys, for every chart that has points.
for (const frame of document.querySelectorAll("[data-points]")) {
  const points = JSON.parse(frame.dataset.points);
  const plot = frame.querySelector(".plot");
  const cursor = frame.querySelector(".cursor");
  const dot = frame.querySelector(".pointed");
  const output = frame.querySelector("output");
  let current = points.length - 1;

  const show = (index) => {
    current = Math.min(points.length - 1, Math.max(0, index));
    const [x, y, text] = points[current];
    cursor.hidden = dot.hidden = false;
    cursor.style.left = dot.style.left = `${x}%`;
    dot.style.top = `${y}%`;
    output.textContent = text;
  };
  const hide = () => {
    cursor.hidden = dot.hidden = true;
    current = points.length - 1;
    output.textContent = points[current][2];
  };

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    const distances = points.map((point) => Math.abs(point[0] - x));
    show(distances.indexOf(Math.min(...distances)));
  });
  plot.addEventListener("pointerleave", hide);
  frame.addEventListener("focusout", hide);
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(cursor.hidden ? current : current + step);
  });
}
