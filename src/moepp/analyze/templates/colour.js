// Ramps: from the page's own background to one hue and a little beyond, so that more is always further from blank.
const LEVELS = 9;
const VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
const rgb = (hex) => [0, 2, 4].map((start) => parseInt(hex.slice(start, start + 2), 16));
const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;
const mix = (a, b, share) => a.map((value, index) => value + (b[index] - value) * share);

// The browser resolves variables and light-dark() when it computes a colour, not before.
function resolve(name) {
  const probe = $("probe");
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
}

function luminance(colour) {
  const [r, g, b] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
// Black or white, whichever reads better; the worse case is 4.6 : 1.
const inkOn = (colour) => (luminance(colour) > 0.179 ? "#000" : "#fff");

function along(stops, share) {
  const place = clamp(share, 0, 1) * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  return mix(stops[index], stops[index + 1], place - index);
}
const viridis = (share) => along(VIRIDIS.map(rgb), share);

function ramp(hue) {
  const [paper, middle] = [resolve("paper"), resolve(hue)];
  const end = mix(middle, luminance(paper) > 0.5 ? [0, 0, 0] : [255, 255, 255], 0.2);
  return (share) => along([paper, mix(paper, middle, 0.28), mix(paper, middle, 0.6), end], share);
}

// Blue for together, vermillion for against each other, the page's background for neither.
function diverging(value) {
  return along([resolve("paper"), value < 0 ? rgb("d55e00") : rgb("0072b2")], Math.abs(value));
}

// Gives the levels q0 … q8 below `host` their colours.
function paint(host, hue) {
  const colour = ramp(hue);
  for (let level = 0; level < LEVELS; level++) {
    const value = colour(level / (LEVELS - 1));
    host.style.setProperty(`--q${level}`, css(value));
    host.style.setProperty(`--i${level}`, inkOn(value));
  }
}
