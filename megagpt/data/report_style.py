"""How the report looks: one style sheet, light and dark, readable on a phone. Data only."""

# Eight colours that stay apart for colour-blind readers (after Okabe and Ito), for light and for dark.
NUM_COLOURS = 8

STYLE = """
:root{color-scheme:light dark;--bg:#f6f6f3;--card:#fff;--ink:#1c1f24;--soft:#5d6470;--line:#e2e2dc;--track:#eeeee9;
--c0:#2b6cb0;--c1:#e07b1f;--c2:#178f6b;--c3:#b8487f;--c4:#7a5cc7;--c5:#9a7d0a;--c6:#3397b9;--c7:#8a8f98}
@media (prefers-color-scheme:dark){:root{--bg:#121418;--card:#1b1e24;--ink:#e8e9ec;--soft:#9aa2ae;--line:#2e323a;
--track:#262a31;--c0:#63a4ea;--c1:#f2a04e;--c2:#3fc496;--c3:#e57fb1;--c4:#a98cf0;--c5:#d6b834;--c6:#62c0de;--c7:#9ba1ab}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","PingFang SC","Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:1.3rem;margin:44px 0 12px;letter-spacing:-.01em}
h3{font-size:1rem;margin:0 0 2px}
p{margin:0}
.lead,.note{color:var(--soft)}.note{font-size:.875rem;margin-top:2px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px;margin:0 0 16px}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:20px 0 16px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 16px;min-width:0}
.tile b{display:block;font-size:1.45rem;line-height:1.25;font-weight:650;letter-spacing:-.01em}
.tile span{display:block;color:var(--soft);font-size:.8125rem}
code,.num{font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.8125rem;overflow-wrap:anywhere}
.chart{margin:14px 0 0}
.frame{display:grid;grid-template-columns:auto 1fr;grid-template-rows:auto 1.6em}
.plot{position:relative;grid-column:2;border-bottom:1px solid var(--soft)}
.plot svg{position:absolute;inset:0;width:100%;height:100%;display:block;overflow:visible}
.y{position:relative;width:3.4em;font-size:.75rem;color:var(--soft)}
.y span{position:absolute;right:8px;transform:translateY(50%);white-space:nowrap}
.x{position:relative;grid-column:2;font-size:.75rem;color:var(--soft)}
.x span{position:absolute;top:4px;transform:translateX(-50%);white-space:nowrap}
.x span.first{transform:none}.x span.last{transform:translateX(-100%)}
.axis{font-size:.75rem;color:var(--soft);text-align:center;margin-top:2px}
.grid line{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.mark{stroke:var(--ink);stroke-width:1;stroke-dasharray:3 3;vector-effect:non-scaling-stroke}
.line{fill:none;stroke-width:2.25;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 0;padding:0;list-style:none;font-size:.875rem}
.legend i,.key{display:inline-block;width:.75em;height:.75em;border-radius:3px;margin-right:.45em}
.rows{display:grid;grid-template-columns:minmax(150px,1.5fr) 2.2fr 1.4fr 1.4fr;gap:0 22px;margin-top:12px;
align-items:center}
.rows>*{padding:7px 0;border-top:1px solid var(--line);min-width:0;align-self:stretch;display:flex;
flex-direction:column;justify-content:center}
.rows>.th{border:0;color:var(--soft);font-size:.8125rem;padding:0 0 4px;justify-content:flex-end}
.name{overflow-wrap:anywhere;font-size:.9375rem;line-height:1.3}
.name small{display:block;color:var(--soft);font-size:.75rem}
.val{font-size:.875rem;line-height:1.35}.val small{color:var(--soft)}
.bar{height:8px;border-radius:4px;background:var(--track);overflow:hidden;margin-top:3px}
.bar i{display:block;height:100%;border-radius:4px;min-width:2px}
.tokens{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px 20px;margin-top:14px}
.token{min-width:0;font-size:.875rem}.token div:first-child{display:flex;justify-content:space-between;gap:10px}
.token b{font-weight:600;overflow-wrap:anywhere}
.token span{color:var(--soft);white-space:nowrap}
.token .bar{height:4px}
.samples{columns:2 340px;column-gap:16px}
.sample{break-inside:avoid;display:inline-block;width:100%}
.sample pre{margin:8px 0 0;font:inherit;font-size:.9375rem;line-height:1.6;white-space:pre-wrap;overflow-wrap:anywhere;
max-height:24em;overflow:auto}
.sample .end{color:var(--soft);font-size:.75rem;border:1px solid var(--line);border-radius:5px;padding:1px 6px;
margin-left:6px;white-space:nowrap}
.scroll{overflow-x:auto;margin-top:10px}
table{border-collapse:collapse;width:100%;font-size:.875rem}
th,td{text-align:left;padding:6px 14px 6px 0;border-top:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:500;font-size:.8125rem;border:0;white-space:nowrap}
td.r,th.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 18px;margin:10px 0 0;font-size:.9375rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
details{margin-top:14px;font-size:.875rem}summary{cursor:pointer;color:var(--soft)}
footer{color:var(--soft);font-size:.8125rem;margin-top:36px}
@media (max-width:640px){main{padding:18px 12px 40px}.card{padding:14px}h2{margin-top:32px}
.rows{grid-template-columns:1fr 1fr;gap:0 16px}.rows>.th{display:none}
.rows>*{border:0;padding:2px 0 8px}.rows>.name{grid-column:1/-1;border-top:1px solid var(--line);padding:10px 0 2px}
.rows>.wide{grid-column:1/-1}.val::before{content:attr(data-label);color:var(--soft);display:block;
font-size:.75rem}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}.tile b{font-size:1.2rem}
dl{grid-template-columns:1fr}dd{margin-bottom:6px}}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""
