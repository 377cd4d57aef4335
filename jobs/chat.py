#!/usr/bin/env python3
"""Renders chats to prompts with a model's chat template, as transformers does it, before a job.

usage: chat.py MODEL < chats.jsonl > requests.jsonl
       chat.py MODEL --date 2026-01-31 < batch.jsonl > requests.jsonl

MODEL is a model file of `atoll import`, a Hugging Face folder, or a template (.jinja). Lines are Atoll's
own, with "messages" in place of "prompt", or OpenAI's batch lines to /v1/chat/completions; others go
through as they are. "tools", "documents", "chat_template_kwargs", "add_generation_prompt",
"continue_final_message" and "reasoning_effort" beside the messages are for the template. A line that
cannot be rendered becomes that line's own error in the results.

Needs Python's jinja2 (Debian: apt-get install python3-jinja2; else: pip install jinja2), and for a model
file the program atoll, which $ATOLL names, or is found on PATH or in this repository's build folder.
"""

import sys

# Python looks for modules beside a script first, and tokenize.py has the name of one of its own.
sys.path = [path for path in sys.path if path not in (__file__.rpartition("/")[0] or ".", "")]

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess

# Beside the messages: what a template is told. tool_choice and parallel_tool_calls do nothing here.
FOR_TEMPLATE = ("tools", "documents", "reasoning_effort")
# The names under which a message may have its reasoning; templates read the first or the second.
REASONING = ("reasoning_content", "thinking", "reasoning")
END = "END_OF_THE_LAST_MESSAGE "
URL = "/v1/chat/completions"
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, or a byte of the input that is no UTF-8


class CannotRender(Exception):
    """Why one line has no prompt."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="model file, Hugging Face folder, or template (.jinja)")
    parser.add_argument("--date", default=None, metavar="DATE",
                        help="what templates that ask for the time are told, such as 2026-01-31 or "
                             "2026-01-31T12:00; default: now")
    parser.add_argument("--kwargs", default="{}", metavar="JSON",
                        help='what all lines tell the template, such as {"enable_thinking": false}')
    options = parser.parse_args()
    try:
        options.date = datetime.datetime.fromisoformat(options.date) if options.date else datetime.datetime.now()
    except ValueError:
        sys.exit(f"chat.py: --date is {options.date}, must be like 2026-01-31 or 2026-01-31T12:00")
    try:
        options.kwargs = json.loads(options.kwargs)
        assert isinstance(options.kwargs, dict)
    except (ValueError, AssertionError):
        sys.exit('chat.py: --kwargs must be a JSON object, such as {"enable_thinking": false}')
    return options


# --- where the template is


def executable():
    """The program atoll."""
    here = pathlib.Path(__file__).resolve().parent.parent / "build/cpu/app/atoll"
    for path in (os.environ.get("ATOLL"), shutil.which("atoll"), str(here)):
        if path and os.access(path, os.X_OK):
            return path
    sys.exit("chat.py: no program atoll to read the model file with; set ATOLL to its path, or give the Hugging "
             "Face folder that the model was made from")


def of_model_file(path):
    """Templates by name and special tokens, of a model file."""
    done = subprocess.run([executable(), "tokenize", "--chat-template", path], capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"cannot read {path}"]
        sys.exit(f"chat.py: {said[-1].removeprefix('atoll: ')}")
    found = json.loads(done.stdout)
    return {"default": found["chat_template"]}, found["special_tokens"]


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        sys.exit(f"chat.py: cannot read {path}: {error}")


def read_template(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        sys.exit(f"chat.py: cannot read {path}: {error}")


def without_template(model):
    """What a model lacks that has no chat template."""
    path = pathlib.Path(model)
    if not path.is_dir():
        return f"{model} has no chat template (the folder that it was imported from had none); give a .jinja file"
    files = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
    missing = [name for name in files if not (path / name).is_file()]
    said = [f"there is no {name}" for name in missing if name != "chat_template.json"]
    if "tokenizer_config.json" not in missing:
        said.append('tokenizer_config.json has no "chat_template"')
    return (f"{model} has no chat template: {', and '.join(said)}. A base model has none: give the folder of the "
            "model that was made for chats, or a .jinja file; or download what is missing")


def of_folder(folder):
    """The same, of a Hugging Face folder."""
    config = read_json(folder / "tokenizer_config.json")
    tokens = {}
    for source in (read_json(folder / "special_tokens_map.json"), config):
        for key, value in source.items():
            if isinstance(value, dict):
                value = value.get("content")
            if key.endswith("_token") and isinstance(value, str):
                tokens[key] = value
    templates = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template") or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    elif isinstance(templates, list):
        templates = {entry["name"]: entry["template"] for entry in templates}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = read_template(file)
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = read_template(folder / "chat_template.jinja")
    return templates, tokens


def load(model):
    path = pathlib.Path(model)
    if path.is_dir():
        templates, tokens = of_folder(path)
    elif path.suffix == ".jinja" and path.is_file():
        templates, tokens = {"default": read_template(path)}, {}
    elif path.is_file():
        templates, tokens = of_model_file(model)
    else:
        sys.exit(f"chat.py: there is no {model}; give a model file, a Hugging Face folder or a .jinja file")
    if not any(templates.values()):
        sys.exit(f"chat.py: {without_template(model)}")
    return templates, tokens


# --- rendering


def environment(date):
    """Jinja, set up as transformers sets it up for chat templates."""
    try:
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        sys.exit("chat.py: Python's module jinja2 is missing; run: apt-get install python3-jinja2, or: "
                 "pip install jinja2")

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks what an assistant wrote, for training; here it is its contents."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_contents"), [], [], body).set_lineno(line)

        def _contents(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                          extensions=[Generation, jinja2.ext.loopcontrols])
    jinja.filters["tojson"] = tojson
    jinja.globals["raise_exception"] = raise_exception
    jinja.globals["strftime_now"] = date.strftime
    return jinja


def takes_parts(source):
    """Whether a template goes through the parts of a content: else they are given as one text."""
    return re.search(r"""for\s+\w+\s+in\s+\w+(\.content\b|\[\s*['"]content['"]\s*\])""", source) is not None


def plain_content(content):
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "refusal"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise CannotRender(f"a content has a part of type {json.dumps(kind)}; only text is supported")
    return "\n".join(part.get("text") or part.get("refusal") or "" for part in content)


def prepared(messages, parts, objects=True):
    """Messages as templates expect them: contents are texts where they do not go through parts, and arguments
    of tool calls are objects (where some want the text, as it came)."""
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise CannotRender('"messages" must be a list of objects with "role" and "content", and not empty')
    result = []
    for message in messages:
        message = dict(message)
        if "role" not in message:
            raise CannotRender('a message has no "role"')
        text = plain_content(message.get("content"))
        if not parts:
            message["content"] = text
        reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        calls = []
        for call in message.get("tool_calls") or []:
            function = dict(call.get("function") or {})
            if objects and isinstance(function.get("arguments"), str):
                try:
                    function["arguments"] = json.loads(function["arguments"] or "{}")
                except ValueError as error:
                    raise CannotRender(f"the arguments of a tool call are not JSON: {error}") from error
            calls.append(dict(call, function=function))
        if calls:
            message["tool_calls"] = calls
        result.append(message)
    return result


def with_end_marked(messages):
    """The messages with a mark where the last one ends, which the model is to go on with."""
    content = messages[-1].get("content")
    if isinstance(content, list):
        texts = [place for place, part in enumerate(content) if "text" in part]
        if texts:
            content = list(content)
            content[texts[-1]] = dict(content[texts[-1]], text=content[texts[-1]]["text"] + END)
    elif content is not None:
        content += END
    return messages[:-1] + [dict(messages[-1], content=content)]


def until_mark(rendered):
    if END.strip() not in rendered:
        raise CannotRender("the template does not show the end of the last message, so that it cannot be continued")
    at = rendered.rindex(END.strip())
    # A template that takes off the mark's space took off the message's, too.
    return rendered[:at] if rendered[at:at + len(END)] == END else rendered[:at].rstrip()


class Options:
    """What arguments() gives, for those who import this."""

    def __init__(self, model, date=None, kwargs=None):
        self.model, self.date, self.kwargs = model, date or datetime.datetime.now(), kwargs or {}


class Chat:
    def __init__(self, options):
        self.sources, self.tokens = load(options.model)
        self.jinja = environment(options.date)
        self.kwargs = options.kwargs
        self.templates = {name: self.compiled(options.model, name) for name in ("default", "tool_use")
                          if self.sources.get(name)}

    def compiled(self, model, name):
        try:
            return self.jinja.from_string(self.sources[name])
        except Exception as error:  # no type is common to what Jinja's parser says
            place = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""
            said = getattr(error, "message", None) or str(error) or type(error).__name__
            sys.exit(f"chat.py: {model}: the chat template is not Jinja: {place}{said}")

    def template(self, tools):
        name = "tool_use" if tools and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise CannotRender(f"the model has several chat templates ({', '.join(self.sources)}) and no default")
        return self.templates[name], takes_parts(self.sources[name])

    def render(self, asked):
        """The prompt of a request; takes what belongs to it out of `asked`."""
        messages = asked.pop("messages")
        told = {key: asked.pop(key, None) for key in FOR_TEMPLATE}
        told = {key: value for key, value in told.items() if value is not None or key != "reasoning_effort"}
        if asked.pop("tool_choice", None) not in (None, "auto", "none"):
            raise CannotRender('"tool_choice" must be "auto" or "none": no tool can be forced')
        asked.pop("parallel_tool_calls", None)
        continues = asked.pop("continue_final_message", False)
        adds = asked.pop("add_generation_prompt", None)
        told["add_generation_prompt"] = not continues if adds is None else adds
        if continues and told["add_generation_prompt"]:
            raise CannotRender('"continue_final_message" and "add_generation_prompt" exclude each other')
        more = asked.pop("chat_template_kwargs", None)
        if more is not None and not isinstance(more, dict):
            raise CannotRender(f'"chat_template_kwargs" is {json.dumps(more)}, must be an object')
        told |= self.tokens | self.kwargs | (more or {})
        template, parts = self.template(told.get("tools"))
        def rendered(objects):
            given = prepared(messages, parts, objects)
            return template.render(messages=with_end_marked(given) if continues else given, **told)

        try:
            try:
                text = rendered(objects=True)
            except TypeError:  # DeepSeek's add texts to the arguments
                text = rendered(objects=False)
        except CannotRender:
            raise
        except Exception as error:  # whatever a template does with what it was given
            raise CannotRender(f"the chat template refuses it: {error}") from error
        return until_mark(text) if continues else text

    def convert(self, line):
        """Renders the line's messages; gives what is wrong with them, if anything."""
        asked = line.get("body") if "custom_id" in line and isinstance(line.get("body"), dict) else line
        if asked.get("messages") is None:
            return None
        if asked is not line and line.get("url", URL) != URL:
            return None  # its url says why it is refused
        if asked is not line:
            line["url"] = URL
        try:
            prompt = self.render(asked)
            if SURROGATE.search(prompt):
                raise CannotRender("the prompt has half of a surrogate pair, or a byte that is no UTF-8")
        except CannotRender as error:
            asked["render_error"] = SURROGATE.sub("\ufffd", str(error))
            return asked["render_error"]
        asked["prompt"] = prompt
        asked["add_special_tokens"] = False  # the template has them
        return None


def written(line):
    """A line as JSON; what UTF-8 cannot hold as an escape, of which the job says what is wrong with it."""
    text = json.dumps(line, ensure_ascii=False)
    return json.dumps(line) if SURROGATE.search(text) else text


def converted(chat, text):
    """A line as it is to be written, and why it could not be rendered, if so."""
    try:
        line = json.loads(text)
        error = chat.convert(line) if isinstance(line, dict) else None
        return written(line), error
    except (ValueError, RecursionError):  # no JSON, or too deep; the job says what is wrong with it
        return text.rstrip("\n"), None


def main():
    options = arguments()
    chat = Chat(options)
    # A byte that is no UTF-8 is its line's error, not the end of all; the locale has no say.
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    failed = 0
    for number, text in enumerate(sys.stdin, 1):
        if number == 1:
            text = text.removeprefix("\ufeff")  # which editors of Windows put there
        if not text.strip():
            continue
        line, error = converted(chat, text)
        if error is not None:
            failed += 1
            if failed == 1:
                print(f"chat.py: line {number}: {error}", file=sys.stderr)
        print(line)
    if failed:
        print(f"chat.py: {failed} lines could not be rendered; each gets its reason in the results", file=sys.stderr)


if __name__ == "__main__":
    main()
