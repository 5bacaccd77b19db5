"""The README's table of peers, from what run.py has written.

    report.py RESULTS.json                print it
    report.py RESULTS.json --into FILE    put it between the lines <!-- peers --> and <!-- /peers --> of FILE
"""

import argparse
import json

TITLES = {
    "train": "training step, {tokens} tokens, LoRA r {rank} on all linear layers",
    "train-checkpointing": "the same with gradient checkpointing",
    "prompt": "prompt of {tokens} tokens",
    "generation": "generation of {generate} tokens",
}


def bytes_text(n):
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def row(r, best):
    name = r["contender"]
    if "error" in r:
        return f"| {name} | does not run | | | |"
    t = r["tokens_per_second"]
    speed = f"{t['median']:.1f} ({t['least']:.1f} to {t['most']:.1f})"
    limit = f"{r['percent_of_limit']['median']:.0f} %" if "percent_of_limit" in r else ""
    return f"| {name} | {speed} | {t['median'] / best:.2f} | {limit} | {bytes_text(r['peak_rss']['median'])} |"


def table(j):
    m, s = j["machine"], j["setting"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    lines = [f"{m['cpu']}, {m['threads']} threads, {bytes_text(m['memory'])} of memory "
             f"({', '.join(m['instructions'])}); {versions}; random weights in the models' shapes, the same for all. "
             f"Medians of {s['rounds']} rounds in which all take turns, with the least and the most."]
    groups = []
    for r in j["results"]:
        key = (r["shape"], r["workload"])
        if key not in groups:
            groups.append(key)
    for shape, workload in groups:
        rows = [r for r in j["results"] if (r["shape"], r["workload"]) == (shape, workload)]
        others = [r["tokens_per_second"]["median"] for r in rows
                  if not r["contender"].startswith("nibble") and "error" not in r]
        best = max(others) if others else float("nan")
        lines += ["", f"**{shape}: {TITLES[workload].format(**s)}**", "",
                  "| | tokens/s | of the best peer | of the limit | peak memory |", "|---|---:|---:|---:|---:|"]
        lines += [row(r, best) for r in rows]
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("results")
    p.add_argument("--into")
    args = p.parse_args()
    with open(args.results) as f:
        text = table(json.load(f))
    if not args.into:
        print(text)
        return
    with open(args.into) as f:
        old = f.read()
    begin, end = "<!-- peers -->\n", "<!-- /peers -->"
    if old.count(begin) != 1 or old.count(end) != 1:
        raise SystemExit(f"{args.into}: one line <!-- peers --> and one line <!-- /peers --> are needed")
    head, rest = old.split(begin)
    with open(args.into, "w") as f:
        f.write(head + begin + text + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
