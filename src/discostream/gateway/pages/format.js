// Figures with their units, in words that people use.

export const NONE = "–";
const UNIT = "\u00a0";

const significant = (digits) => new Intl.NumberFormat("en", { maximumSignificantDigits: digits });
const [two, three] = [significant(2), significant(3)];
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const cents = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** Makes nothing known a dash. */
const known = (say) => (value) => (value === null || value === undefined ? NONE : say(value));

export const count = known((value) => whole.format(value));
export const percent = known((share) => `${three.format(100 * share)}${UNIT}%`);
export const plural = (many, one, more = `${one}s`) => `${count(many)}${UNIT}${Math.round(many) === 1 ? one : more}`;
export const tokens = (many) => plural(many, "token");

/** A span: ms below a second, then seconds, minutes, hours, days. */
export const seconds = known((span) => {
  if (span < 0.00005) return `0${UNIT}ms`;
  if (span < 0.9995) return `${(span < 0.01 ? two : whole).format(1000 * span)}${UNIT}ms`;
  if (span < 9.995) return `${span.toFixed(2)}${UNIT}s`;
  if (span < 59.95) return `${span.toFixed(1)}${UNIT}s`;
  const all = Math.round(span);
  const [large_s, large, small_s, small] = all < 3600 ? [60, "min", 1, "s"] : all < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  const rest = Math.floor((all % large_s) / small_s);
  return `${Math.floor(all / large_s)}${UNIT}${large}${rest ? ` ${rest}${UNIT}${small}` : ""}`;
});

/** Dollars: cents from ten of them on, two digits below. */
export const usd = known((value) => {
  if (value === 0) return "$0";
  if (value >= 0.1) return `$${cents.format(value)}`;
  return value >= 1e-6 ? `$${two.format(value)}` : `$${value.toExponential(1)}`;
});

const sized = (value, unit) => {
  const [size, prefix] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => value >= 0.9995 * size) ?? [1, ""];
  return `${three.format(value / size)}${UNIT}${prefix}${unit}`;
};

export const joules = known((value) => sized(value, "J"));
export const wattHours = known((value) => (value / 3600 >= 0.1 || value === 0 ? sized(value / 3600, "Wh") : `${three.format(value / 3.6)}${UNIT}mWh`));
export const energy = known((value) => `${joules(value)} (${wattHours(value)})`);

// Moments, in the reader's own time zone

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const MONTH_S = 28 * 86400;
const month = new Intl.DateTimeFormat("en-GB", { month: "short", year: "numeric" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
export const zone = () => Intl.DateTimeFormat().resolvedOptions().timeZone;

const isToday = (at) => date.format(at) === date.format(new Date());

/** A moment for a list: of today the time alone, of this year no year. */
export const when = known((moment) => {
  const at = new Date(moment);
  const dated = at.getFullYear() === new Date().getFullYear() ? day : date;
  return isToday(at) ? clock.format(at) : `${dated.format(at)} ${minute.format(at)}`;
});

export const fully = known((moment) => `${date.format(new Date(moment))}, ${clock.format(new Date(moment))}`);

/** A `time` on an axis whose ticks are this many seconds apart. */
export const tick = (at_s, apart_s) => (apart_s >= MONTH_S ? month : apart_s >= 86400 ? day : apart_s >= 60 ? minute : clock).format(new Date(1000 * at_s));

export const ago = known((moment) => {
  const passed = Math.max(0, Math.round((Date.now() - new Date(moment)) / 1000));
  return passed < 60 ? `${passed}${UNIT}s ago` : `${seconds(passed)} ago`;
});

/** The last and the first of 1, 2, 5, 10, 20, … that a value is not below or not above: where axes begin and end. */
export const below = (value) => rounds(value).findLast((round) => round <= value);
export const above = (value) => rounds(value).find((round) => round >= value);
const rounds = (value) => [1, 2, 5, 10].map((digit) => digit * 10 ** Math.floor(Math.log10(value)));

/** Short forms for the ticks of an axis. */
const brief = (value) => String(Number(value.toPrecision(4)));
export const secondsTick = (value) => (value === 0 ? "0" : value < 1 ? `${brief(1000 * value)}${UNIT}ms` : `${brief(value)}${UNIT}s`);
export const usdTick = (value) => (value === 0 ? "0" : `$${brief(value)}`);
export const joulesTick = (value) => (value === 0 ? "0" : sized(value, "J"));
export const countTick = (value) => (Number.isInteger(value) ? count(value) : "");
export const percentTick = (value) => `${brief(100 * value)}${UNIT}%`;
