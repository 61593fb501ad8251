"""The style sheet for notebooks. It adopts the notebook's colours and supports light and dark themes.

JupyterLab and VS Code set variables and mark the page's body; elsewhere, the reader's preference applies. Heat maps mix
the background with a hue, so that weak values fade into the background of either theme.
"""

from typing import Final

_DARK: Final = "--ink:#e6e6e6;--faint:#9a9a9a;--line:#4a4a4a;--paper:#1b1b1d;--up:#69b1ff;--down:#ff8a80;--one:#bd9cff"
_DARK_HUES: Final = "--mlp:#6fd08c;--attention:#ff9e80"
_LIGHT: Final = "--ink:#222;--faint:#666;--line:#d0d0d0;--paper:#fff;--up:#2166ac;--down:#b2182b;--one:#54278f"
_LIGHT_HUES: Final = "--mlp:#006d2c;--attention:#a63603"

_RULES: Final = f"""<style>
.sonde{{{_LIGHT};{_LIGHT_HUES}}}
@media (prefers-color-scheme:dark){{.sonde{{{_DARK};{_DARK_HUES}}}}}
[data-jp-theme-light="true"] .sonde,.vscode-light .sonde{{{_LIGHT};{_LIGHT_HUES}}}
[data-jp-theme-light="false"] .sonde,.vscode-dark .sonde,.vscode-high-contrast .sonde{{{_DARK};{_DARK_HUES}}}
.sonde{{--text:var(--jp-content-font-color1,var(--vscode-editor-foreground,var(--ink)));
--ground:var(--jp-layout-color0,var(--vscode-editor-background,var(--paper)));
color:var(--text);font:13px/1.45 system-ui,"Segoe UI","DejaVu Sans",sans-serif;margin:.4em 0;max-width:100%;
overflow-x:auto}}
.sonde p,.sonde figure,.sonde form{{margin:.5em 0 .8em}}
.sonde figure{{display:inline-block;vertical-align:top;margin-right:1.6em}}
.sonde figure.wide{{display:block}}
.sonde form{{max-height:30em;overflow-y:auto}}
.sonde .sortable thead{{position:sticky;top:0;background:var(--ground)}}
.sonde .note{{color:var(--faint)}}
.sonde details summary{{cursor:pointer}}
.sonde details pre{{margin:.3em 0 .6em 1em;font:12px/1.4 ui-monospace,"DejaVu Sans Mono",monospace;color:inherit;
white-space:pre-wrap;background:none}}
.sonde svg{{display:block}}
.sonde svg text{{fill:var(--text);font:11px system-ui,"Segoe UI","DejaVu Sans",sans-serif}}
.sonde svg .faint{{fill:var(--faint)}}
.sonde svg rect{{fill:color-mix(in oklab,var(--hue) calc(var(--s)*1%),var(--ground));stroke:var(--ground);
stroke-width:.7}}
.sonde svg rect.frame{{fill:none;stroke:var(--line)}}
.sonde svg rect.none{{fill:var(--line);fill-opacity:.35}}
.sonde svg .u,.sonde .strip .u{{--hue:var(--up)}}
.sonde svg .d,.sonde .strip .d{{--hue:var(--down)}}
.sonde svg .curve{{fill:none;stroke:var(--one);stroke-width:2}}
.sonde svg circle{{fill:var(--one)}}
.sonde svg line{{stroke:var(--line)}}
.sonde .strip{{font-family:ui-monospace,"DejaVu Sans Mono",monospace;line-height:2;white-space:pre-wrap}}
.sonde .strip span{{padding:.18em 0;border-bottom:2px solid color-mix(in oklab,var(--hue,transparent)
calc(var(--s,0)*1%),var(--line));background:color-mix(in oklab,var(--hue,transparent) calc(var(--s,0)*.45%),
transparent);margin-right:1px}}
.sonde .strip .read{{outline:1.5px solid var(--faint);outline-offset:1px;border-radius:2px}}
.sonde table{{border-collapse:collapse;margin:0;border:0;color:inherit;font-size:13px}}
.sonde caption,.sonde figcaption{{text-align:left;font-weight:600;padding:.1em 0 .4em;color:inherit;caption-side:top}}
.sonde th,.sonde td{{padding:.2em .8em .2em .3em;text-align:left;border:0;vertical-align:baseline;color:inherit;
background:none;line-height:1.45;overflow-wrap:anywhere;max-width:44em}}
.sonde tr{{padding:0}}
.sonde thead tr{{border-bottom:1px solid var(--line)}}
.sonde tbody tr,.sonde tbody tr:nth-child(n){{background:none}}
.sonde tbody tr:hover{{background:color-mix(in oklab,var(--text) 7%,transparent)}}
.sonde .n{{text-align:right;font-variant-numeric:tabular-nums}}
.sonde .t{{font-family:ui-monospace,"DejaVu Sans Mono",monospace;white-space:pre}}
.sonde td.cell{{background:color-mix(in oklab,var(--one) calc(var(--s)*.55%),transparent)}}
.sonde .bar{{display:inline-block;height:.62em;background:var(--hue,var(--one));margin-left:.6em;border-radius:1px}}
.sonde table.sortable{{display:grid;grid-template-columns:repeat(var(--columns),max-content);width:max-content}}
.sonde .sortable caption{{grid-column:1/-1}}
.sonde .sortable thead,.sonde .sortable tbody,.sonde .sortable tr{{display:grid;grid-template-columns:subgrid;
grid-column:1/-1}}
.sonde .sortable label{{cursor:pointer;white-space:nowrap}}
.sonde .sortable input{{appearance:none;width:.75em;height:.75em;margin:0 0 0 .35em;background:none;border:0}}
.sonde .sortable input::after{{content:"↕";color:var(--faint);font-size:11px}}
.sonde .sortable input:checked::after{{content:"▾";color:var(--text)}}
.sonde .sortable label:focus-within{{outline:2px solid var(--up);outline-offset:2px}}
@media print{{.sonde .sortable input{{display:none}}}}
</style>"""

STYLE: Final = _RULES.replace(".sonde ", ".sonde.sonde.sonde ")
"""Part of every output. The class is repeated so that its rules take precedence over the notebook's own."""


def sorting(columns: int) -> str:
    """Rules that order rows by their rank in the chosen column."""
    rules = "".join(
        f".sonde.sonde .sortable:has(input.k{i}:checked) tbody tr{{order:var(--k{i})}}" for i in range(columns)
    )
    return f"<style>{rules}</style>"
