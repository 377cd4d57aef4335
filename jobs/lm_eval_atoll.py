#!/usr/bin/env python3
"""Lets EleutherAI's evaluation harness ask an Atoll job: it writes a file of requests, a job answers all of
them at once, and the harness reads the results.

usage: lm_eval_atoll.py --model atoll --model_args model=model.h5,ranks=8 --tasks hellaswag [option of lm_eval...]

Options in --model_args:
  model=FILE       model file of `atoll import` (needed)
  ranks=N          ranks of each job (1); launcher=... takes the place of "mpirun -n N", for example srun
  folder=DIR       where requests and results lie (atoll-eval); what is there already is not computed again
  options=...      of `atoll run`, for example options=--dtype float32
  max_length=N     tokens of prompt and answer together (what the model has)
  max_gen_toks=N   tokens of answers for tasks that name no number (256)
  chat=PATH        Hugging Face folder or .jinja with the chat template, for --apply_chat_template (the model file)
  date=DATE        what chat templates that ask for the day are told (2026-01-01), so that a day changes no prompt

Needs `pip install lm_eval`, the program atoll ($ATOLL, on PATH, or in this repository's build folder), and for
--apply_chat_template Python's jinja2.
"""

import sys

HERE = __file__.rpartition("/")[0] or "."
# Python looks for modules beside a script first, and jobs/tokenize.py has the name of one of its own.
sys.path = [path for path in sys.path if path not in (HERE, "")]

import datetime
import hashlib
import importlib.util
import json
import pathlib
import shlex
import subprocess

spec = importlib.util.spec_from_file_location("atoll_chat", f"{HERE}/chat.py")
chat_templates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chat_templates)

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    sys.exit("lm_eval_atoll.py: Python's module lm_eval is missing; run: pip install lm_eval")


CONTINUATIONS_AT_ONCE = 1000  # of one request; more become several with the same prompt
BYTES_AT_ONCE = 512 * 1024  # of its continuations, as JSON


class JobFailed(Exception):
    """A job did not answer."""


def split(continuations):
    """Continuations, in their order, in lists that one request takes."""
    lists, size = [], 0
    for one in continuations:
        more = len(json.dumps(one))
        if not lists or len(lists[-1]) == CONTINUATIONS_AT_ONCE or size + more > BYTES_AT_ONCE:
            lists.append([])
            size = 0
        lists[-1].append(one)
        size += more
    return lists


def sound(text):
    """A text with U+FFFD for halves of surrogate pairs, which no tokenizer and no file can hold."""
    return chat_templates.SURROGATE.sub("\ufffd", text)


@register_model("atoll")
class Atoll(LM):
    def __init__(self, model, ranks=1, launcher=None, folder="atoll-eval", options="", max_length=None,
                 max_gen_toks=256, chat=None, date="2026-01-01", batch_size=None, max_batch_size=None, device=None, **ignored):
        super().__init__()
        self.model = str(model)
        self.program = chat_templates.executable()
        self.launcher = shlex.split(launcher) if launcher else ["mpirun", "-n", str(ranks)]
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options = shlex.split(options)
        self.version = self.atoll(["--version"])
        self.facts = self.inspect()
        self.max_length = int(max_length) if max_length else self.facts["max_positions"]
        self.max_gen_toks = int(max_gen_toks)
        self.chat_source = chat or self.model
        try:
            self.date = datetime.datetime.fromisoformat(str(date))
        except ValueError:
            sys.exit(f"lm_eval_atoll.py: date is {date}, must be like 2026-01-31")
        self.templates = None
        prefix = self.encode([""])[0]
        self.prefix = prefix[:1] or [self.facts["end"]]  # what stands before a text without a context

    # --- jobs

    def atoll(self, arguments, text=None):
        done = subprocess.run([self.program, *arguments], input=text, capture_output=True, text=True)
        if done.returncode != 0:
            raise JobFailed(f"atoll {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def inspect(self):
        """What the model file says: its identity, positions, and the token that ends a text."""
        text = self.atoll(["inspect", "--no-verify", self.model])
        identity = next(line for line in text.splitlines() if line.startswith("identity "))
        config = json.JSONDecoder().raw_decode(text.split("\nconfiguration\n", 1)[1])[0]
        ends = config.get("stop_token_ids", config.get("eos_token_id")) or 0
        positions = config.get("max_positions") or config["max_position_embeddings"]
        return {"identity": identity, "max_positions": positions, "end": ends[0] if isinstance(ends, list) else ends}

    def encode(self, texts, special=True):
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        options = [] if special else ["--no-special-tokens"]
        found = self.atoll(["tokenize", self.model, "--json-lines", *options], lines)
        return [json.loads(line) for line in found.splitlines()]

    def run(self, requests, mode):
        """Results by id. A file's name is that of what is asked, of the model and of the program, so that a
        harness that is started again, or asks again, takes up what is there, and nothing of another model
        that took the file's place."""
        text = "".join(json.dumps(request, ensure_ascii=False) + "\n" for request in requests)
        of = [mode, self.facts["identity"], self.version, *self.options, text]
        name = hashlib.sha256("\0".join(of).encode()).hexdigest()[:16]
        asked, answers = self.folder / f"{mode}-{name}.jsonl", self.folder / f"{mode}-{name}.results.jsonl"
        if not answers.exists():
            asked.write_text(text, encoding="utf-8")
            command = [*self.launcher, self.program, "run", "--model", self.model, "--mode", mode, "--input",
                       str(asked), "--output", str(answers), "--resume", *self.options]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode not in (0, 65):
                raise JobFailed(f"{shlex.join(command)}: {done.stderr.strip()}")
        results = {}
        with open(answers, encoding="utf-8") as file:
            for line in map(json.loads, file):
                if "error" in line:
                    raise JobFailed(f"{asked}, request {line.get('id')}: {line['error']}")
                results[line["id"]] = line
        return results

    # --- what the harness asks

    def score(self, groups):
        """Of (prompt, continuations) pairs the (log-probability, greedy) of each continuation. A prompt is a
        text, or ids."""
        requests, owners = [], []
        for number, (prompt, continuations) in enumerate(groups):
            key = "prompt" if isinstance(prompt, str) else "tokens"
            for some in split(continuations):
                requests.append({"id": str(len(requests)), key: prompt, "continuations": some})
                owners.append(number)
        results = self.run(requests, "score") if requests else {}
        scores = [[] for _ in groups]
        for request, owner in zip(requests, owners):
            scores[owner] += [(part["logprob"], part["greedy"]) for part in results[request["id"]]["continuations"]]
        return scores

    def loglikelihood(self, requests):
        """All continuations of one context in one request, whose context is then computed once."""
        places, groups = [], {}
        for request in requests:
            context, continuation = map(sound, request.args[:2])
            spaces = len(context) - len(context.rstrip())
            if spaces:  # they belong to the first word that is scored
                context, continuation = context[:-spaces], context[-spaces:] + continuation
            group = groups.setdefault(context, [])
            places.append((context, len(group)))
            group.append(continuation)
        keys = list(groups)
        fitted = [self.fitted(context, groups[context]) for context in keys]
        scores = dict(zip(keys, self.score(fitted)))
        answers = [scores[context][place] for context, place in places]
        for request, answer in zip(requests, answers):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def fitted(self, context, continuations):
        """The context, without its beginning where it is too long together with a continuation."""
        if not context:
            return self.prefix, continuations
        longest = max(len(text.encode()) for text in continuations)
        if len(context.encode()) + longest + 8 <= self.max_length:  # a token has one byte at least
            return context, continuations
        tokens = self.encode([context])[0]
        ids = [whole[len(tokens):] for whole in self.encode([context + text for text in continuations])]
        room = self.max_length - max(map(len, ids))
        return (context, continuations) if len(tokens) <= room else (tokens[len(tokens) - room:], ids)

    def loglikelihood_rolling(self, requests):
        texts = [sound(request.args[0]) for request in requests]
        windows, owner = [], []
        for number, tokens in enumerate(self.encode(texts, special=False) if texts else []):
            for window in get_rolling_token_windows(token_list=tokens, prefix_token=self.prefix[0],
                                                    max_seq_len=self.max_length - 1, context_len=1):
                context, scored = make_disjoint_window(window)
                windows.append((list(context), [list(scored)]))
                owner.append(number)
        sums = [0.0] * len(texts)
        for number, [(logprob, _)] in zip(owner, self.score(windows)):
            sums[number] += logprob
        for request, answer in zip(requests, sums):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return sums

    def generate_until(self, requests):
        lines = []
        for number, request in enumerate(requests):
            context, wanted = sound(request.args[0]), dict(request.args[1])
            until = wanted.pop("until", None) or []
            until = [sound(text) for text in ([until] if isinstance(until, str) else until) if text]
            samples = wanted.pop("do_sample", None)
            line = {"id": str(number), "max_tokens": int(wanted.pop("max_gen_toks", self.max_gen_toks))}
            line |= {"prompt": context} if context else {"tokens": self.prefix}
            if until:
                line["stop"] = until
            temperature = wanted.pop("temperature", None)
            if temperature is None:
                temperature = 1 if samples else 0  # as transformers takes it
            line["temperature"] = float(temperature) if samples is not False else 0
            for key in ("top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
                        "frequency_penalty"):
                if wanted.get(key) is not None:
                    line[key] = wanted.pop(key)
            lines.append(self.shortened(line))
        results = self.run(lines, "generate") if lines else {}
        answers = [results[str(number)]["text"] for number in range(len(lines))]
        for request, answer in zip(requests, answers):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def shortened(self, line):
        """With the end of its prompt only, where all of it leaves no room for the answer."""
        room = self.max_length - line["max_tokens"]
        if "tokens" in line or len(line["prompt"].encode()) + 8 <= room:
            return line
        tokens = self.encode([line["prompt"]])[0]
        if len(tokens) <= room:
            return line
        if room < 1:
            raise JobFailed(f"max_gen_toks is {line['max_tokens']}, and the model has {self.max_length} positions")
        del line["prompt"]
        return line | {"tokens": tokens[-room:]}

    # --- chats

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        if self.templates is None:
            options = chat_templates.Options(self.chat_source, self.date)
            self.templates = chat_templates.Chat(options)
        asked = {"messages": chat_history, "add_generation_prompt": add_generation_prompt}
        if not add_generation_prompt:
            asked["continue_final_message"] = True
        return self.templates.render(asked)

    @property
    def tokenizer_name(self):
        return self.model.replace("/", "__")

    def chat_template(self, chat_template=False):
        return chat_templates.load(self.chat_source)[0].get("default", "")


def main():
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
