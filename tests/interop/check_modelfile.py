#!/usr/bin/env python3
"""Export models with many chat templates for Ollama, and render their Modelfiles with Go's text/template, as Ollama does.

    python3 tests/interop/check_modelfile.py --nibble ./nibble [--base DIR] [--templates FILE]... [--go GO]

The texts must be those of the Jinja templates, run as transformers runs them, but for a BOS in front that the tokenizer adds.
--templates: JSON with "cases": [{"name", "template", "bos_token", "eos_token"}] (the vectors' chat/rendered.json).
Without it: ChatML alone. Exits with 1 on a difference. Needs jinja2 and go.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
          "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
WORDS = ["u", "uau", "uauauau", "su", "suau", "suauauau"]
TEXTS = ["Hello, how are you?", "Fine.", "What is {{ 2 + 2 }}?", "\"\"\"Four\"\"\", I think", "sind Umlaute möglich: äöü",
         "{% if x %}", "12", "the end"]


def conversation(word):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[c], "content": TEXTS[i]} for i, c in enumerate(word)]


def raise_exception(message):
    raise TemplateError(message)


def by_jinja(case, messages):
    """None where the template refuses the conversation."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: {"%Y-%m-%d": "2024-07-26"}.get(f, "26 Jul 2024")
    try:
        return env.from_string(case["template"]).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=messages[-1]["role"] == "user",
            bos_token=case["bos_token"], eos_token=case["eos_token"])
    except TemplateError:
        return None


def modelfile(args, case, tmp):
    """The Modelfile's text for a base with this template, and what nibble said."""
    base, out = os.path.join(tmp, "base"), os.path.join(tmp, "out")
    for folder in (base, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(args.base, base)
    path = os.path.join(base, "tokenizer_config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    config["chat_template"] = case["template"]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f)
    done = subprocess.run([args.nibble, "export", "--base", base, "--format", "ollama", "--dtype", "q8_0", "--no-verify",
                           "--out", out], capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr
    with open(os.path.join(out, "Modelfile"), encoding="utf-8") as f:
        return f.read(), done.stderr


def by_go(args, text, conversations):
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.S | re.M).group(1)
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "modelfile.go")
    done = subprocess.run([args.go, "run", program], input=json.dumps({"template": template, "conversations": conversations}),
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def check(args, case, tmp):
    """'ok', 'differs', or why there is no template in Go."""
    text, said = modelfile(args, case, tmp)
    if text is None:
        return "refused: " + said.strip()
    if "TEMPLATE" not in text:
        return "no form in Go"
    words = [w for w in WORDS if by_jinja(case, conversation(w)) is not None]
    if "no place for a system message" in text:
        words = [w for w in words if w[0] != "s"]
    for word, got in zip(words, by_go(args, text, [conversation(w) for w in words])):
        want = by_jinja(case, conversation(word))
        if want != got:
            print(f"--- {word}\nwant {want!r}\ngot  {got!r}", file=sys.stderr)
            return "differs"
    return f"ok       {len(words)} conversations" if words else "differs: nothing to compare"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", required=True)
    parser.add_argument("--base", default="data/samples/base")
    parser.add_argument("--templates", action="append", default=[])
    parser.add_argument("--go", default="go")
    args = parser.parse_args()
    with open(os.path.join(args.base, "special_tokens_map.json"), encoding="utf-8") as f:
        special = json.load(f)
    cases = [{"name": "chatml", "template": CHATML}]
    for path in args.templates:
        with open(path, encoding="utf-8") as f:
            cases += json.load(f)["cases"]
    bad, names = 0, ("bos_token", "eos_token")
    for case in cases:
        for name in names:  # the base's tokenizer has those that it has
            token = special.get(name, "")
            case[name] = token["content"] if isinstance(token, dict) else token
        with tempfile.TemporaryDirectory() as tmp:
            result = check(args, case, tmp)
        bad += result.startswith("differs") or (case["name"] == "chatml" and not result.startswith("ok"))
        print(f"{result}: {case['name']}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
