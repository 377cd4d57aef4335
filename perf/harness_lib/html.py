"""The report as one HTML file that needs no network."""

import base64
import html
import json

from .results import environment_text, tables

# Pictures keep a width at which their text can be read: a narrow window scrolls them, a wide one
# holds two beside each other.
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 96rem; margin: 1.5rem auto;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } p, li { max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.6rem 0 1rem; font-size: 13px; }
th, td { border: 1px solid #ccc; padding: 0.2rem 0.5rem; text-align: left; vertical-align: top; }
th { background: #f0f2f5; } td:not(:first-child) { font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 40rem), 1fr));
            gap: 1.5rem 2rem; align-items: start; }
figure { margin: 0; min-width: 0; } figcaption { color: #555; font-size: 13px; max-width: 56rem; }
figure img { display: block; width: 100%; min-width: 34rem; max-width: 56rem; }
figure.wide { grid-column: 1 / -1; }
figure.wide img { min-width: 56rem; max-width: 88rem; }
pre { background: #f6f6f6; padding: 0.6rem; overflow-x: auto; font-size: 12px; }
"""


def table(head, rows):
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>\n"
                   for row in rows)
    return f'<div class=scroll><table><tr>{cells}</tr>\n{body}</table></div>'


def figure(picture):
    data = base64.b64encode(picture.path.read_bytes()).decode()
    kind = " class=wide" if picture.wide else ""
    return (f'<figure id="{picture.path.stem}"{kind}><div class=scroll>'
            f'<img alt="{html.escape(picture.finding)}" src="data:image/png;base64,{data}"></div>'
            f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>")


def write(outcome, pictures, path):
    m = outcome["machine"]
    title = f"Atoll: {outcome['name']}"
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8>"
             "<meta name=viewport content=\"width=device-width\">"
             f"<title>{html.escape(title)}</title>"
             f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
             f"<p>{outcome['date']}, commit {html.escape(outcome['commit'] or 'unknown')}, "
             f"{m['cores']} cores of {html.escape(m['cpu'] or 'an unknown CPU')}, Linux "
             f"{html.escape(m['kernel'])}, {outcome['rounds']} rounds. Environment of all "
             f"programs, for MPI: {html.escape(environment_text(outcome))}.</p>"]
    if outcome["notes"]:
        parts.append("<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in outcome["notes"])
                     + "</ul>")
    if pictures:
        parts.append("<h2>Findings</h2><ul>" + "".join(
            f'<li><a href="#{picture.path.stem}">{html.escape(picture.finding)}</a></li>'
            for picture in pictures) + "</ul>")
        parts.append("<div class=pictures>" + "\n".join(map(figure, pictures)) + "</div>")
    for name, head, rows, remark in tables(outcome):
        parts.append(f"<h2>{html.escape(name)}</h2>{table(head, rows)}<p>{html.escape(remark)}</p>")
    parts.append("<h2>Configuration</h2><pre>"
                 + html.escape(json.dumps(outcome["declared"], indent=1)) + "</pre>")
    details = [entry["detail"] for entry in outcome["cases"] if "detail" in entry]
    if details and "mpi" in details[0]:
        parts.append(f"<p>{html.escape(details[0]['mpi'])}; {html.escape(details[0]['backend'])}; "
                     f"hosts {html.escape(', '.join(details[0]['hosts']))}</p>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
