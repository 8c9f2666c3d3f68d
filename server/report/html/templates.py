"""Templates of the page and its style, for Jinja2.

They are in a Python file because Flower packs no file of another kind that a page could be in, and the ServerApp writes
the report from what Flower packed.
"""

from collections.abc import Mapping

STYLE = r"""
:root { color-scheme: light dark; --ink: #1c2733; --dim: #52616f; --page: #f4f6f8; --card: #ffffff; --line: #d5dde6;
  --warn: #a3221a; --accent: #005a8d; --shade: 0, 114, 178;
  --c0: #0072b2; --c1: #b06f00; --c2: #00805c; --c3: #b0487f; --c4: #2d8fc4; --c5: #c04e00; --c6: #75590a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #a7b6c5; --page: #10161d; --card: #1a222c;
  --line: #34414f; --warn: #ff8a80; --accent: #7cc4f0; --shade: 86, 180, 233;
  --c0: #56b4e9; --c1: #f0b849; --c2: #4cc9a0; --c3: #e59cc4; --c4: #9ad3f5; --c5: #ff9457; --c6: #d9be6b; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 12px; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 10px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 10px; overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 8px 0; max-width: 90ch; }
a { color: var(--accent); }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
code { font-size: 13px; overflow-wrap: anywhere; }
blockquote, .banner { margin: 10px 0; padding: 8px 14px; border-left: 5px solid var(--warn); color: var(--warn); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 16px 0; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 14px 0 0; list-style: none; }
.dim { color: var(--dim); }
.small { font-size: 13px; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; }
caption { text-align: left; font-weight: 600; padding: 0 0 4px; }
th { text-align: left; font-weight: 600; }
thead th { color: var(--dim); font-size: 13px; vertical-align: bottom; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th.n { white-space: normal; min-width: 5.2em; }
tbody th { font-weight: 400; min-width: 4.5em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 18px; }
.charts.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
figure, .charts > div { margin: 0; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; max-width: 560px; }
svg text { fill: var(--dim); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
.data { fill: none; stroke: var(--k); stroke-width: 1.8; stroke-linejoin: round; }
.dot { fill: var(--k); }
.c0 { --k: var(--c0); } .c1 { --k: var(--c1); } .c2 { --k: var(--c2); } .c3 { --k: var(--c3); }
.c4 { --k: var(--c4); } .c5 { --k: var(--c5); } .c6 { --k: var(--c6); }
.d1 { stroke-dasharray: 7 4; } .d2 { stroke-dasharray: 2 3; } .d3 { stroke-dasharray: 9 3 2 3; }
.pooled { --k: var(--ink); stroke-width: 3; }
.faint { --k: var(--dim); stroke-width: .8; opacity: .55; }
.ideal { --k: var(--dim); stroke-dasharray: 4 4; stroke-width: 1.2; }
.key { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; padding: 0; margin: 4px 0 0; font-size: 13px; }
.key li { display: flex; align-items: center; gap: 6px; overflow-wrap: anywhere; }
.key svg { width: 30px; height: 10px; flex: none; }
.forest table { width: 100%; }
.forest td.plot { width: 50%; min-width: 110px; padding: 0; vertical-align: middle; }
.forest svg { height: 22px; width: 100%; max-width: none; }
.forest th, .forest td { padding: 3px 12px 3px 0; }
.forest tbody th { min-width: 6.5em; overflow-wrap: break-word; }
.forest .pool th, .forest .pool td { font-weight: 700; }
.span { stroke: var(--c0); stroke-width: 2; vector-effect: non-scaling-stroke; }
.point { stroke: var(--ink); stroke-width: 4; vector-effect: non-scaling-stroke; }
.gridline { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.matrix td { text-align: right; font-variant-numeric: tabular-nums; padding: 6px 10px; border: 1px solid var(--line);
  min-width: 44px; }
.matrix th { padding: 6px 10px 6px 0; border: 0; }
.matrix thead th { text-align: right; padding: 6px 10px; }
.matrix thead th:first-child { text-align: left; padding-left: 0; }
.right { font-weight: 700; outline: 2px solid var(--dim); outline-offset: -3px; }
.s1 { background: rgba(var(--shade), .07); } .s2 { background: rgba(var(--shade), .12); }
.s3 { background: rgba(var(--shade), .17); } .s4 { background: rgba(var(--shade), .22); }
.s5 { background: rgba(var(--shade), .27); } .s6 { background: rgba(var(--shade), .32); }
.s7 { background: rgba(var(--shade), .37); } .s8 { background: rgba(var(--shade), .41); }
.s9 { background: rgba(var(--shade), .45); } .s10 { background: rgba(var(--shade), .49); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: 16px 10px 40px; } section { padding: 14px 12px; }
  .forest { font-size: 13px; } .forest tbody th { min-width: 4.6em; } .forest td.plot { min-width: 70px; }
  .forest th, .forest td { padding-right: 8px; }
  h1 { font-size: 23px; } dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; } }
@media print { :root { color-scheme: light; --ink: #000; --dim: #444; --page: #fff; --card: #fff; --line: #bbb;
    --warn: #8f1d16; --accent: #000; --shade: 0, 114, 178;
    --c0: #0072b2; --c1: #b06f00; --c2: #00805c; --c3: #b0487f; --c4: #2d8fc4; --c5: #c04e00; --c6: #75590a; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 10px 0; }
  .scroll { overflow: visible; } .scroll table { font-size: 8pt; } th, td { padding-right: 8px; }
  figure, .matrix, .forest, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  td, .key svg, svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_CHARTS = r"""
{% macro line_chart(chart, size) %}
<figure>
<figcaption>{{ chart.title }}</figcaption>
<svg viewBox="0 0 {{ size.WIDTH }} {{ size.HEIGHT }}" role="img" aria-label="{{ chart.title }}. {{ chart.description }}">
{% for tick in chart.y_ticks %}
<line class="grid" x1="{{ size.LEFT }}" x2="{{ size.WIDTH - size.RIGHT }}" y1="{{ tick.at }}" y2="{{ tick.at }}"/>
<text x="{{ size.LEFT - 6 }}" y="{{ tick.at + 4 }}" text-anchor="end">{{ tick.label }}</text>
{% endfor %}
{% for tick in chart.x_ticks %}
<line class="grid" x1="{{ tick.at }}" x2="{{ tick.at }}" y1="{{ size.HEIGHT - size.BOTTOM }}" y2="{{ size.HEIGHT - size.BOTTOM + 4 }}"/>
<text x="{{ tick.at }}" y="{{ size.HEIGHT - size.BOTTOM + 17 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor %}
{% for line in chart.lines %}
<path class="data {{ line.kind }}" d="{{ line.path }}"/>
{% for x, y in line.markers %}
<circle class="dot {{ line.kind }}" cx="{{ x }}" cy="{{ y }}" r="2.6"/>
{% endfor %}
{% endfor %}
<text x="{{ (size.LEFT + size.WIDTH - size.RIGHT) / 2 }}" y="{{ size.HEIGHT - 6 }}" text-anchor="middle">{{ chart.x_label }}</text>
<text transform="translate(12 {{ (size.TOP + size.HEIGHT - size.BOTTOM) / 2 }}) rotate(-90)" text-anchor="middle">{{ chart.y_label }}</text>
</svg>
{% if chart.lines | length > 1 %}
<ul class="key">
{% for line in chart.lines if line.kind != "faint" %}
<li><svg viewBox="0 0 30 10" aria-hidden="true"><path class="data {{ line.kind }}" d="M1 5 L29 5"/></svg>{{ line.name }}</li>
{% endfor %}
</ul>
{% endif %}
{% if chart.note %}<p class="dim small">{{ chart.note }}</p>{% endif %}
</figure>
{% endmacro %}
{% macro interval(one) %}
{% if one.is_there %}{{ one.value | share }} ({{ one.low | share }} to {{ one.high | share }}){% else %}-{% endif %}
{% endmacro %}
{% macro forest_plot(forest) %}
<div class="forest scroll" role="region" tabindex="0" aria-label="{{ forest.title }} by site"><table>
<caption>{{ forest.title }}</caption>
<thead><tr><th scope="col">site</th><th scope="col" class="n">images</th><th scope="col" class="n">percent (95 %)</th><th scope="col">0 to 100 %</th></tr></thead>
<tbody>
{% for row in forest.rows %}
<tr{% if row.is_pooled %} class="pool"{% endif %}><th scope="row">{{ row.name }}</th><td class="n">{{ row.num_images }}</td><td class="n">{{ interval(row) }}</td><td class="plot">
<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
{% for x in (0, 25, 50, 75, 100) %}<line class="gridline" x1="{{ x }}" x2="{{ x }}" y1="0" y2="10"/>{% endfor %}
{% if row.is_there %}
<line class="span" x1="{{ row.low | round(2) }}" x2="{{ row.high | round(2) }}" y1="5" y2="5"/><line class="point" x1="{{ row.value | round(2) }}" x2="{{ row.value | round(2) }}" y1="2" y2="8"/>
{% endif %}
</svg></td></tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro confusion(matrix, classes) %}
<div class="matrix scroll" role="region" tabindex="0" aria-label="Confusion matrix of {{ matrix.name }}"><table>
<caption>{{ matrix.name }} <span class="dim small">{{ matrix.num_images }} images</span></caption>
<thead><tr><th scope="col">true \ predicted</th>{% for name in classes %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, cells in matrix.rows %}
{% set row = loop.index0 %}
<tr><th scope="row">{{ name }}</th>{% for cell in cells %}<td class="s{{ cell.shade }}{% if loop.index0 == row %} right{% endif %}">{{ cell.count }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
"""

_PAGE = r"""{% from "charts.html.jinja" import line_chart, forest_plot, confusion, interval with context %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">
<title>Report: {{ title }}</title>
<style>{{ style }}</style></head>
<body><main>
<header>
<h1>{{ title }}</h1>
{{ opening }}
<nav aria-label="Sections"><ul>
{% for name, section in sections.items() %}
<li><a href="#{{ name }}">{{ section.title }}</a></li>
{% endfor %}
<li><a href="#left-out">Not on this page</a></li>
<li><a href="#provenance">Provenance</a></li>
</ul></nav>
</header>
{% for name, section in sections.items() %}
<section id="{{ name }}" aria-labelledby="{{ name }}-title">
<h2 id="{{ name }}-title">{{ section.title }}</h2>
{% if name == "rounds" and curves %}
<div class="charts">{% for chart in curves %}{{ line_chart(chart, size) }}{% endfor %}</div>
{% endif %}
{{ section.body }}
{% if name == "model" and forests %}
<h3>By site, with 95 % intervals</h3>
<p class="dim small">Wilson's intervals. They take images as independent, so they are too narrow where a patient has several.</p>
<div class="charts wide">{% for forest in forests %}{{ forest_plot(forest) }}{% endfor %}</div>
{% endif %}
{% if name == "confusion" and matrices %}
<p class="dim small">{{ side | capitalize }} images by true class (row) and by what the model said (column). The darker a cell, the larger its share of the true class.</p>
<div class="charts">{% for matrix in matrices %}{{ confusion(matrix, classes) }}{% endfor %}</div>
{% endif %}
{% if name == "classes" and class_curves %}
<h3>Curves, all sites together</h3>
<div class="charts">{% for chart in class_curves %}{{ line_chart(chart, size) }}{% endfor %}</div>
{% endif %}
{% if name == "classes" and site_curves %}
<h3>Curves by site</h3>
<p class="dim small">A site without images of a class, or of the others, has no line. Few images make few, long steps.</p>
<div class="charts">{% for chart in site_curves %}{{ line_chart(chart, size) }}{% endfor %}</div>
{% endif %}
{% if name == "classes" and thresholds %}
<h3>Sensitivity and specificity at thresholds, all sites together</h3>
<p class="dim small">An image counts as of the class if its probability is at least the threshold, whatever the other classes have. A threshold that was chosen on validation images is applied to other images here, so it may find fewer.</p>
<div class="scroll" role="region" tabindex="0" aria-label="Sensitivity and specificity at thresholds"><table>
<thead><tr><th scope="col">class</th><th scope="col">threshold chosen</th><th scope="col" class="n">threshold</th><th scope="col" class="n">sensitivity (95 %)</th><th scope="col" class="n">specificity (95 %)</th></tr></thead>
<tbody>
{% for row in thresholds %}
<tr><th scope="row">{{ row.class_name }}</th><td>{{ row.how }}</td><td class="n">{{ row.threshold | short }}</td><td class="n">{{ interval(row.sensitivity) }}</td><td class="n">{{ interval(row.specificity) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
</section>
{% endfor %}
<section id="left-out" aria-labelledby="left-out-title">
<h2 id="left-out-title">Not on this page</h2>
<ul>{% for sentence in left_out %}<li>{{ sentence }}</li>{% endfor %}</ul>
</section>
<section id="provenance" aria-labelledby="provenance-title">
<h2 id="provenance-title">Provenance</h2>
<dl>{% for name, value in provenance.items() %}<dt>{{ name }}</dt><dd><code>{{ value }}</code></dd>{% endfor %}</dl>
</section>
{% if synthetic %}<p class="banner"><strong>{{ synthetic | capitalize }}.</strong></p>{% endif %}
</main></body></html>
"""

TEMPLATES: Mapping[str, str] = {"charts.html.jinja": _CHARTS, "page.html.jinja": _PAGE}
"""By name."""
