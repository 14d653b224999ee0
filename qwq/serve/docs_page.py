"""/docs: openapi.json as one readable page, made on the server, so that it needs no script and no other host."""

from __future__ import annotations

import re
from html import escape
from string import Template
from typing import Any

CSS = """\
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
h2 code { font-size: 1.1em; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: .5rem; overflow-x: auto; }
code { font: .9em ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
td:nth-child(2) { white-space: nowrap; }
.method { color: #2a7de1; font-weight: 600; }
"""

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title API</title>
<link rel="stylesheet" href="/docs.css">
</head>
<body>
<h1>$title API</h1>
<p>$description The same as data: <a href="/openapi.json">openapi.json</a>. The chat page is at <a href="/">/</a>.</p>
<pre><code>from openai import OpenAI

client = OpenAI(base_url="$base", api_key="none")  # or the server's key
reply = client.chat.completions.create(model="$model", messages=[{"role": "user", "content": "Hi"}])
print(reply.choices[0].message.content)</code></pre>
<pre><code>curl $base/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "$model", "messages": [{"role": "user", "content": "Hi"}], "stream": true}'</code></pre>
<p>Every error is <code>{"error": {"message", "type", "param", "code"}}</code>.</p>
$routes
<h1>Objects</h1>
$objects
</body>
</html>
""")


def render(api: dict[str, Any], base: str, model: str) -> str:
    """The page.

    Args:
        api: the OpenAPI document.
        base: the API's address, such as "http://127.0.0.1:8000/v1", for the examples.
        model: a model's name, for the examples.
    """
    schemas = api["components"]["schemas"]
    routes = [_route(path, method, op) for path, ops in api["paths"].items() for method, op in ops.items()]
    return _PAGE.substitute(
        title=escape(api["info"]["title"]),
        description=escape(api["info"]["description"]),
        base=escape(base),
        model=escape(model),
        routes="\n".join(routes),
        objects="\n".join(_object(name, schema) for name, schema in sorted(schemas.items())),
    )


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    lines = [
        f'<h2><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2>',
        f"<p>{_text(operation.get('description', ''))}</p>",
    ]
    body = operation.get("requestBody")
    if body is not None:
        lines.append(f"<p>Body: {_type(body['content']['application/json']['schema'])}</p>")
    answers = []
    for status, response in operation["responses"].items():
        kinds = [
            f"{_type(content['schema'])}" for content in response.get("content", {}).values() if "schema" in content
        ]
        answers.append(f"<li><code>{status}</code> {' or '.join(kinds)} {escape(response['description'])}</li>")
    return "\n".join([*lines, f"<ul>{''.join(answers)}</ul>"])


def _object(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(field)}</code>{'*' if field in required else ''}</td>"
        f"<td>{_type(value)}</td><td>{_text(_about(value))}</td></tr>"
        for field, value in schema.get("properties", {}).items()
    ]
    text = _text(schema.get("description", ""))
    return f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>\n<p>{text}</p>\n<table>{"".join(rows)}</table>'


def _text(words: str) -> str:
    """Words as HTML, with `this` set as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(words))


def _type(schema: dict[str, Any]) -> str:
    """A schema's type as HTML, objects as links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    return escape(schema.get("type", "any"))


def _about(schema: dict[str, Any]) -> str:
    """Description, limits and default in words."""
    limits = {}
    for part in [schema, *schema.get("anyOf", [])]:
        limits.update({key: part[key] for key in _LIMITS if key in part})
    words = [schema.get("description", "").rstrip(".")]
    words += [f"{_LIMITS[key]} {value}" for key, value in limits.items()]
    if schema.get("default") is not None:
        words.append(f"default {schema['default']}")
    return "; ".join(word for word in words if word)


_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minItems": "items at least",
}
