"""The report's style sheet. Works in light and dark, on paper, and without colour."""

from typing import Final

CSS: Final = """
:root {
  --paper: #ffffff; --ink: #16191d; --soft: #586069; --faint: #8b939c; --rule: #d8dde3;
  --wash: #f4f6f8; --accent: #0a5f73; --warn-ink: #7a3d00; --warn-wash: #fdf1e2;
  --warn-rule: #e8b878;
  --c0: #5b6470; --c1: #0072b2; --c2: #c8500a; --c3: #00805f; --c4: #b0548a; --c5: #8a6d00;
  --c6: #6a4fb3; --c7: #2f6f2f;
  --sans: "Inter", "Helvetica Neue", "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif;
  --serif: "Charter", "Bitstream Charter", "Source Serif 4", "Georgia", "Liberation Serif",
    "DejaVu Serif", serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e4e7ea; --soft: #a6aeb7; --faint: #7b848e; --rule: #333a42;
    --wash: #1c2126; --accent: #6cc3d5; --warn-ink: #f3c58c; --warn-wash: #2b2114;
    --warn-rule: #6d4f25;
    --c0: #a9b2bd; --c1: #56b4e9; --c2: #f28a4b; --c3: #35c39b; --c4: #dd8fbd; --c5: #d9bd3f;
    --c6: #a993ea; --c7: #86c786;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 400 1.0625rem/1.55 var(--serif); font-variant-numeric: oldstyle-nums;
  text-rendering: optimizeLegibility; overflow-wrap: break-word;
}
.frame { max-width: 76rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
header h1 { font-size: 2.25rem; line-height: 1.15; font-weight: 600; margin: 0 0 .5rem; }
.lede { font-size: 1.2rem; line-height: 1.5; max-width: 44rem; margin: 0 0 1.5rem; }
p, ul, ol { max-width: 42rem; margin: 0 0 1rem; }
a { color: var(--accent); text-underline-offset: .15em; }
.notice {
  max-width: 44rem; margin: 0 0 1.5rem; padding: .75rem 1rem; border: 1px solid var(--warn-rule);
  background: var(--warn-wash); color: var(--warn-ink); border-radius: 4px;
}
.notice p { margin: 0; max-width: none; }
nav { font-family: var(--sans); font-size: .875rem; line-height: 1.9; margin: 0 0 1rem; }
nav ol { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1.4rem;
  max-width: none; margin: 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { border-top: 1px solid var(--rule); margin-top: 3rem; padding-top: 1.6rem; }
h2 { font-size: 1.55rem; line-height: 1.25; font-weight: 600; margin: 0 0 .7rem; }
h3 { font: 600 .95rem/1.4 var(--sans); margin: 2rem 0 .6rem; }
.beside { display: grid; gap: 1rem 3.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 29rem), 1fr));
  align-items: start; }
.beside > * { min-width: 0; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font: 400 .875rem/1.45 var(--sans);
  font-variant-numeric: lining-nums tabular-nums; }
.caption { color: var(--soft); font: 400 .875rem/1.45 var(--sans); margin: -.4rem 0 1rem;
  max-width: 44rem; font-variant-numeric: lining-nums; }
th, td { padding: .38rem .8rem; text-align: left; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; }
thead tr.group th { border-bottom: 0; padding-bottom: 0; color: var(--soft); font-weight: 400; }
thead tr.group th.span { text-align: center; }
thead tr.group th.span span { display: block; border-bottom: 1px solid var(--rule);
  padding-bottom: .2rem; }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--rule); }
tbody th { font-weight: 400; }
.num { text-align: right; white-space: nowrap; }
th.steady, td.steady { white-space: nowrap; }
td.best { font-weight: 700; }
.quiet, .quiet td, .quiet th { color: var(--soft); }
.tag { font: 600 .75rem/1 var(--sans); border: 1px solid var(--warn-rule); color: var(--warn-ink);
  background: var(--warn-wash); border-radius: 3px; padding: .12rem .35rem; white-space: nowrap; }
.missing { font-family: var(--sans); font-size: .9rem; color: var(--soft);
  border-left: 3px solid var(--rule);
  padding-left: .8rem; }
figure { margin: 0 0 1.5rem; }
figcaption { font: 400 .875rem/1.45 var(--sans); color: var(--soft); max-width: 44rem;
  margin-top: .5rem;
  font-variant-numeric: lining-nums; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: var(--sans); fill: var(--ink);
  font-variant-numeric: lining-nums tabular-nums; }
svg .tick { fill: var(--soft); font-size: 12px; }
svg .label { fill: var(--soft); font-size: 12.5px; }
svg .name { font-size: 12.5px; }
svg .heading { font-size: 14px; font-weight: 600; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--faint); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.key { display: inline-block; width: 2.1rem; height: .8rem; vertical-align: -.05rem;
  margin-right: .5rem; }
.key svg { height: 100%; }
.middling { max-width: 46rem; }
.legend { font: 400 .875rem/1.6 var(--sans); }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); }
.s3 { stroke: var(--c3); } .s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
.s6 { stroke: var(--c6); } .s7 { stroke: var(--c7); }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); }
.f3 { fill: var(--c3); } .f4 { fill: var(--c4); } .f5 { fill: var(--c5); }
.f6 { fill: var(--c6); } .f7 { fill: var(--c7); }
img { display: block; max-width: 100%; height: auto; border-radius: 3px; background: var(--wash); }
.strip { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); }
.strip.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.strip figure { margin: 0; }
.strip img { width: 100%; }
.faces { display: grid; gap: .5rem .6rem; align-items: start; font: 400 .8125rem/1.35 var(--sans);
  min-width: 52rem; font-variant-numeric: lining-nums tabular-nums; }
.faces .head { font-weight: 600; align-self: end; }
.faces .head span { font-weight: 400; color: var(--soft); }
.faces img { width: 100%; aspect-ratio: 1; object-fit: cover; }
.faces .cell p { margin: .25rem 0 .4rem; color: var(--soft); max-width: none;
  overflow-wrap: anywhere; }
.faces .cell b { color: var(--ink); font-weight: 600; }
.bar { display: flex; align-items: center; gap: .6rem; font: 400 .8125rem/1 var(--sans);
  color: var(--soft);
  font-variant-numeric: lining-nums; margin: 0 0 1rem; }
.bar i { display: block; width: 12rem; height: .7rem; border-radius: 2px; }
details { margin: 0 0 1rem; font: 400 .875rem/1.5 var(--sans); }
summary { cursor: pointer; color: var(--accent); }
details .scroll { margin-top: .6rem; max-height: 24rem; overflow: auto; }
code { font: .9em "DejaVu Sans Mono", "Liberation Mono", monospace; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); padding-top: 1rem; color: var(--soft);
  font: 400 .875rem/1.5 var(--sans); }
@media (max-width: 40rem) { .frame { padding: 1.5rem 1rem 3rem; } header h1 { font-size: 1.8rem; } }
@media print { .frame { max-width: none; padding: 0; } nav { display: none; }
  section, figure, table { break-inside: avoid; } }
"""
