"use strict";
// Draws the charts with ECharts from the data in #charts. Text from the runs is only ever inserted as text nodes.

const printing = () => document.documentElement.classList.contains("paper");
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Accuracies have one or two digits; small values of other metrics have three significant ones.
function format(value, digits) {
  if (value === null || value === undefined) return "–";
  return digits > 2 && Math.abs(value) > 1e-12 && Math.abs(value) < 0.01 ? value.toPrecision(3) : value.toFixed(digits);
}

function range(point, digits) {
  const inside = point.low === undefined || point.low === null ? "" : ` (${format(point.low, digits)} to ${format(point.high, digits)})`;
  return format(point.mean, digits) + inside;
}

// A tooltip: a heading and lines of [color, name, value].
function tip(heading, lines) {
  const rows = lines.map(([color, name, value]) => {
    const swatch = create("span", { class: "swatch" });
    swatch.style.background = color ?? "transparent";
    return create("div", {}, ...(color ? [swatch] : []), create("span", {}, name), create("b", {}, value));
  });
  return create("div", { class: "tip" }, create("b", {}, heading), ...rows);
}

// The width of the labels left of an axis, limited to a share of the chart.
const pen = document.createElement("canvas").getContext("2d");
function labelWidth(labels, state) {
  pen.font = "12px system-ui, sans-serif";
  return Math.min(Math.max(...labels.map((label) => pen.measureText(label).width)) + 4, state.width * 0.42);
}

const axis = (type, name, more = {}) => ({
  type, name, nameLocation: "middle", nameGap: 30, scale: true, nameTextStyle: { color: cssColor("--ink") },
  axisLine: { show: true, lineStyle: { color: cssColor("--soft") } }, axisLabel: { color: cssColor("--ink"), hideOverlap: true },
  splitLine: { lineStyle: { color: cssColor("--line") } }, minorSplitLine: { show: false }, ...more,
});

const base = () => ({
  animation: false, textStyle: { fontFamily: "system-ui, sans-serif", color: cssColor("--ink") },
  tooltip: { confine: true, backgroundColor: "#ffffff", borderColor: "#bbb", textStyle: { color: "#1b1b1b" } },
});

// Vertical or horizontal intervals with caps, means and seeds. place: a point's position on the other axis.
function intervals(points, place, color, horizontal) {
  const at = (point, value) => (horizontal ? [value, place(point)] : [place(point), value]);
  const known = points.filter((point) => point.low !== undefined);
  const data = (point, value, more = {}) => ({ value: at(point, value), point, itemStyle: { color: color(point) }, ...more });
  return [
    {
      type: "custom", silent: true, z: 2, encode: horizontal ? { x: [0, 1], y: 2 } : { x: 0, y: [1, 2] },
      data: known.map((point) => (horizontal ? [point.low, point.high, place(point)] : [place(point), point.low, point.high])),
      renderItem(params, api) {
        const ends = horizontal
          ? [api.coord([api.value(0), api.value(2)]), api.coord([api.value(1), api.value(2)])]
          : [api.coord([api.value(0), api.value(1)]), api.coord([api.value(0), api.value(2)])];
        const line = (a, b) => ({ type: "line", shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] },
          style: { stroke: color(known[params.dataIndex]), lineWidth: 1.5 } });
        const cap = ([x, y]) => (horizontal ? line([x, y - 5], [x, y + 5]) : line([x - 5, y], [x + 5, y]));
        return { type: "group", children: [line(...ends), ...ends.map(cap)] };
      },
    },
    { type: "scatter", z: 3, symbolSize: 9, data: points.map((point) => data(point, point.mean)) },
    { type: "scatter", z: 1, symbol: "rect", symbolSize: horizontal ? [2, 14] : [14, 2],
      data: points.flatMap((point) => point.seeds.map((seed) => data(point, seed, { seed }))) },
  ];
}

const options = {
  curves(chart, state) {
    const { name, digits } = chart.metrics.find((metric) => metric.key === state.metric);
    const series = [];
    for (const line of chart.lines.filter((_, place) => state.on.has(place))) {
      for (const part of state.training ? ["held out", "training"] : ["held out"]) {
        const found = line.values[state.metric][part];
        if (!found) continue;
        const valid = (value) => value !== null && !(state.log && value <= 0);
        const points = line.epochs.map((epoch, at) => ({
          epoch, mean: found.mean[at], low: found.low?.[at], high: found.high?.[at],
        })).filter((point) => valid(point.mean));
        series.push({
          type: "line", name: part === "training" ? `${line.name}, training` : line.name, showSymbol: points.length < 2, symbolSize: 5,
          lineStyle: { color: line.color, width: 1.8, type: part === "training" ? "dashed" : "solid" },
          itemStyle: { color: line.color }, emphasis: { disabled: true },
          data: points.map((point) => ({ value: [point.epoch, point.mean], point })),
        });
        const band = points.filter((point) => point.low !== undefined && valid(point.low));
        if (band.length > 1) {
          series.push({
            type: "custom", silent: true, clip: true, encode: { x: 0, y: [1, 2] }, tooltip: { show: false },
            data: band.map((point) => [point.epoch, point.low, point.high]),
            renderItem(params, api) {
              if (params.dataIndex > 0) return null;
              const low = band.map((point) => api.coord([point.epoch, point.low]));
              const high = band.map((point) => api.coord([point.epoch, point.high]));
              return { type: "polygon", shape: { points: [...low, ...high.reverse()] }, style: { fill: line.color, opacity: 0.15 } };
            },
          });
        }
      }
    }
    return {
      ...base(), series, grid: { left: 64, right: 16, top: 16, bottom: 48 },
      xAxis: axis("value", "epoch", { minInterval: 1, min: "dataMin", max: "dataMax", splitLine: { show: false } }),
      yAxis: axis(state.log ? "log" : "value", name, { nameGap: 46 }),
      tooltip: {
        ...base().tooltip, trigger: "axis", axisPointer: { type: "line" },
        formatter: (items) => tip(`epoch ${items[0].value[0]}`, items.filter((item) => item.data.point).map((item) =>
          [item.color, item.seriesName, range(item.data.point, digits)])),
      },
    };
  },

  points(chart, state) {
    const formatter = ({ data: { point, seed } }) => tip(point.name, [
      [null, chart.value, range(point, chart.digits)], ...(seed === undefined ? [] : [[null, "this seed", format(seed, chart.digits)]])]);
    const tooltip = { ...base().tooltip, trigger: "item", formatter };
    if (chart.x === undefined) {
      const names = chart.points.map((point) => point.name);
      const width = labelWidth(names, state);
      const places = new Map(chart.points.map((point, at) => [point, at]));
      return {
        ...base(), tooltip, grid: { left: width + 12, right: 24, top: 8, bottom: 44 },
        xAxis: axis("value", chart.value),
        yAxis: axis("category", "", { data: names, inverse: true, axisTick: { show: false }, splitLine: { show: false },
          axisLabel: { color: cssColor("--ink"), interval: 0, width, overflow: "break", lineHeight: 13 } }),
        series: intervals(chart.points, (point) => places.get(point), (point) => point.color, true),
      };
    }
    const line = { type: "line", symbol: "none", silent: true, lineStyle: { color: cssColor("--mark"), width: 1.2 },
      data: chart.points.map((point) => [point.x, point.mean]) };
    return {
      ...base(), tooltip, grid: { left: 64, right: 20, top: 16, bottom: 48 },
      xAxis: axis(state.log ? "log" : "value", chart.x), yAxis: axis("value", chart.value, { nameGap: 46 }),
      series: [...(chart.joined ? [line] : []), ...intervals(chart.points, (point) => point.x, () => cssColor("--mark"), false)],
    };
  },

  heat(chart, state) {
    const values = chart.cells.flat().filter((value) => value !== null);
    const [min, max] = chart.range ?? [Math.min(...values), Math.max(...values)];
    const labeled = values.length <= 400;
    const size = state.width / (chart.columns.length + 2) < 34 ? 9 : 11;
    const dark = !printing() && matchMedia("(prefers-color-scheme: dark)").matches;
    const turns = min + (dark ? 0.65 : 0.7) * (max - min);  // where white and black have the same contrast
    const text = (value) => ((value > turns) === dark ? "#111" : "#fff");
    const [left, below] = [labelWidth(chart.rows, state), labelWidth(chart.columns, state)];
    const turned = below * chart.columns.length > 0.8 * (state.width - left);
    const height = turned ? Math.min(0.75 * below, 110) : 14;
    const plain = { splitLine: { show: false }, axisTick: { show: false } };
    const label = { color: cssColor("--ink"), interval: 0, overflow: "truncate" };
    return {
      ...base(), grid: { left: left + 30, right: 8, top: 8, bottom: height + 70 },
      xAxis: axis("category", chart.x, { data: chart.columns, ...plain, nameGap: height + 14,
        axisLabel: { ...label, width: turned ? 140 : below, rotate: turned ? 45 : 0 } }),
      yAxis: axis("category", chart.y, { data: chart.rows, inverse: true, ...plain, nameGap: left + 14, axisLabel: { ...label, width: left } }),
      visualMap: { type: "continuous", min, max, calculable: false, orient: "horizontal", left: "center", bottom: 0, precision: chart.digits,
        itemHeight: 120, itemWidth: 12, text: [format(max, chart.digits), format(min, chart.digits)], textStyle: { color: cssColor("--ink") },
        inRange: { color: [cssColor("--low"), cssColor("--high")] } },
      series: [{ type: "heatmap", label: { show: labeled, fontSize: size, formatter: ({ value }) => format(value[2], chart.digits) },
        data: chart.cells.flatMap((row, y) => row.flatMap((value, x) => (value === null ? [] : [{ value: [x, y, value], label: { color: text(value) } }]))) }],
      tooltip: { ...base().tooltip, formatter: ({ value: [x, y, value] }) => tip(
        `${chart.y}: ${chart.rows[y]}, ${chart.x}: ${chart.columns[x]}`, [[null, chart.value, format(value, Math.max(chart.digits, 1))]]) },
    };
  },

  parallel(chart, state) {
    const last = chart.axes.length;
    const scores = chart.lines.map((line) => line[last]).filter((score) => score !== null);
    const style = { nameTextStyle: { color: cssColor("--ink") }, axisLine: { lineStyle: { color: cssColor("--soft") } },
      axisLabel: { color: cssColor("--ink") }, nameRotate: 0, nameTruncate: { maxWidth: (state.width - 120) / last - 12 } };
    const colors = [cssColor("--line"), cssColor("--mark")];
    return {
      ...base(), parallel: { left: 50, right: 70, top: 40, bottom: 60 },
      parallelAxis: [
        ...chart.axes.map((part, dim) => ({ dim, name: part.name, scale: true, ...style,
          ...(part.values ? { type: "category", data: part.values } : { type: part.log ? "log" : "value" }) })),
        { dim: last, name: chart.value, type: "value", scale: true, ...style },
      ],
      visualMap: { type: "continuous", dimension: last, min: Math.min(...scores), max: Math.max(...scores), orient: "horizontal", left: "center",
        bottom: 0, itemHeight: 120, itemWidth: 12, calculable: false, textStyle: { color: cssColor("--ink") },
        text: [format(Math.max(...scores), chart.digits), format(Math.min(...scores), chart.digits)],
        inRange: { color: chart.higher ? colors : [...colors].reverse() } },
      series: [{ type: "parallel", progressive: 0, lineStyle: { width: 1.5, opacity: 0.7 }, emphasis: { lineStyle: { width: 4, opacity: 1 } }, inactiveOpacity: 0.04, data: chart.lines }],
      tooltip: { ...base().tooltip, formatter: ({ value }) => tip("", [
        ...chart.axes.map((part, at) => [null, part.name, String(value[at])]), [null, chart.value, format(value[last], chart.digits)]]) },
    };
  },
};

const drawn = [];

for (const block of document.querySelectorAll(".chart")) {
  const chart = JSON.parse(document.getElementById("charts").textContent)[block.dataset.chart];
  const plot = create("div", { class: "plot" });
  const scroll = create("div", { class: "scroll" }, plot);
  const tools = create("div", { class: "tools" });
  const state = {
    metric: chart.metrics?.[0]?.key, log: Boolean(chart.log), training: true,
    on: new Set((chart.lines ?? []).flatMap((line, place) => (line.on ? [place] : []))),
  };
  if (chart.kind === "heat") plot.style.height = `${190 + Math.min(44, Math.max(20, 620 / chart.rows.length)) * chart.rows.length}px`;
  block.append(tools, scroll);
  const instance = echarts.init(plot, null, { renderer: "svg" });
  const draw = (width) => {
    instance.resize(width ? { width } : undefined);
    state.width = instance.getWidth();
    if (chart.kind === "points" && chart.x === undefined) {
      const names = chart.points.map((point) => point.name);
      const ratio = Math.max(...names.map((name) => pen.measureText(name).width)) / labelWidth(names, state);
      const lines = ratio > 1 ? Math.ceil(ratio) + 1 : 1;  // words that do not fit move to the next line
      instance.resize({ width, height: 60 + Math.max(26, 14 * lines + 6) * names.length });
    }
    instance.setOption(options[chart.kind](chart, state), true);
  };
  drawn.push(draw);

  const toggle = (name, key) => {
    const box = create("input", { type: "checkbox", onchange: () => { state[key] = box.checked; draw(); } });
    box.checked = state[key];
    return create("label", {}, box, name);
  };
  if (chart.kind === "curves") {
    const select = create("select", { onchange: () => { state.metric = select.value; draw(); } },
      ...chart.metrics.map((metric) => create("option", { value: metric.key }, metric.name)));
    tools.append(create("label", {}, "metric", select), toggle("training", "training"), toggle("log scale", "log"));
    const boxes = chart.lines.map((line, place) => {
      const box = create("input", { type: "checkbox", onchange: () => { box.checked ? state.on.add(place) : state.on.delete(place); draw(); } });
      box.checked = state.on.has(place);
      return box;
    });
    const swatch = (line) => { const element = create("span", { class: "swatch" }); element.style.background = line.color; return element; };
    block.append(create("ul", { class: "key" }, ...chart.lines.map((line, place) => create("li", {}, create("label", {}, boxes[place], swatch(line), line.name)))));
    const all = (checked) => () => { boxes.forEach((box, place) => { box.checked = checked; checked ? state.on.add(place) : state.on.delete(place); }); draw(); };
    if (chart.lines.length > 2) tools.append(create("button", { type: "button", onclick: all(true) }, "all"), create("button", { type: "button", onclick: all(false) }, "none"));
  }
  if (chart.kind === "points" && chart.x !== undefined && chart.points.every((point) => point.x > 0)) tools.append(toggle("log scale", "log"));
  draw();
}

const redraw = (width) => drawn.forEach((draw) => draw(width));
let waiting;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 100); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
const PRINTED = 660; // px, fits A4 and Letter
addEventListener("beforeprint", () => { document.documentElement.classList.add("paper"); redraw(PRINTED); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); redraw(); });
