"""The README's table of peers, from what run.py has written.

    report.py RESULTS.json ...                print all of it
    report.py RESULTS.json ... --into FILE    put the best of each, a line a workload, between the lines <!-- peers -->
                                              and <!-- /peers --> of FILE
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


def conditions(j):
    m, s = j["machine"], j["setting"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return (f"{m['cpu']}, {m['threads']} threads, {bytes_text(m['memory'])} of memory ({', '.join(m['instructions'])}); "
            f"{versions}; random weights in the models' shapes, the same for all")


def groups(j):
    """(shape, workload) -> the rows, in order."""
    found = {}
    for r in j["results"]:
        found.setdefault((r["shape"], r["workload"]), []).append(r)
    return found


def fastest(rows, ours):
    able = [r for r in rows if "error" not in r and r["contender"].startswith("nibble") == ours]
    return max(able, key=lambda r: r["tokens_per_second"]["median"], default=None)


def table(j):
    s = j["setting"]
    lines = [f"{conditions(j)}. Medians of {s['rounds']} rounds in which all take turns, with the least and the most."]
    for (shape, workload), rows in groups(j).items():
        peer = fastest(rows, False)
        best = peer["tokens_per_second"]["median"] if peer else float("nan")
        lines += ["", f"**{shape}: {TITLES[workload].format(**s)}**", "",
                  "| | tokens/s | of the best peer | of the limit | peak memory |", "|---|---:|---:|---:|---:|"]
        lines += [row(r, best) for r in rows]
    return "\n".join(lines)


def summary(files):
    lines = [f"{conditions(files[0])}. The fastest of each; medians of rounds in which all take turns.", "",
             "| | rounds | nibble | tokens/s | memory | best peer | tokens/s | memory | ratio | of the limit |",
             "|---|---:|---|---:|---:|---|---:|---:|---:|---:|"]
    for j in files:
        only = j["setting"].get("instructions", "all")
        for (shape, workload), rows in groups(j).items():
            ours, peer = fastest(rows, True), fastest(rows, False)
            title = f"{shape}: {TITLES[workload].format(**j['setting'])}" + ("" if only == "all" else f", {only} only")
            cells = [title, str(j["setting"]["rounds"])]
            for r in (ours, peer):
                cells += [r["contender"], f"{r['tokens_per_second']['median']:.0f}", bytes_text(r["peak_rss"]["median"])]
            ratio = ours["tokens_per_second"]["median"] / peer["tokens_per_second"]["median"]
            share = f"{ours['percent_of_limit']['median']:.0f} %" if "percent_of_limit" in ours else ""
            lines.append("| " + " | ".join(cells + [f"{ratio:.2f}", share]) + " |")
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("results", nargs="+")
    p.add_argument("--into")
    args = p.parse_args()
    files = []
    for path in args.results:
        with open(path) as f:
            files.append(json.load(f))
    if not args.into:
        print("\n\n".join(table(j) for j in files))
        return
    text = summary(files)
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
