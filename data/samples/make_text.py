#!/usr/bin/env python3
"""Write the pre-training text of the sample base model.

    python3 data/samples/make_text.py --out build/text [--bytes 9000000] [--seed 1]

makes OUT/text.jsonl ({"text": ...}) and OUT/chat.jsonl ({"messages": [...]}). Same arguments, same bytes. The text is
written for the project: it teaches a very small model formats (records, tables, lists, JSON, questions), and above all
to copy names, codes and numbers from where they were said to where they are asked for.
"""

import argparse
import json
import os
import random

import lexicon as lx
from text_domains import CLOSING, OPENING, WORLDS


# ---- messages and the records they hold ------------------------------------------------------------------------

def message(rng, world):
    """A sentence of the world, and its fields in reading order: (text, [(field, value), ...], label)."""
    _, makers, labels = world
    label = rng.choice(sorted(labels))
    frame = rng.choice(labels[label])
    values = {field: make(rng) for field, make in makers.items() if "{" + field + "}" in frame}
    text = rng.choice(OPENING) + frame.format(**values) + rng.choice(CLOSING)
    fields = sorted(values, key=lambda f: frame.index("{" + f + "}"))
    return text, [(f, values[f]) for f in fields], label


def as_pairs(pairs):
    return "; ".join(f"{k}={v}" for k, v in pairs)


def as_colons(pairs):
    return ", ".join(f"{k}: {v}" for k, v in pairs)


def as_fields(pairs):
    return "; ".join(f"{k}: {v}" for k, v in pairs)


def as_bars(pairs):
    return " | ".join(f"{k} {v}" for k, v in pairs)


def as_json(pairs):
    return json.dumps(dict(pairs), ensure_ascii=False)


def as_compact(pairs):
    return json.dumps(dict(pairs), ensure_ascii=False, separators=(",", ":"))


def as_tags(pairs):
    return "".join(f"<{k}>{v}</{k}>" for k, v in pairs)


def as_lines(pairs):
    return "\n".join(f"{k}: {v}" for k, v in pairs)


def as_values(pairs):
    return ", ".join(v for _, v in pairs)


STYLES = [as_pairs, as_fields, as_fields, as_fields, as_colons, as_colons, as_bars, as_lines, as_values, as_json, as_compact,
          as_tags]
ASKS = ["Text: {m}\nRecord: ", "Message: {m}\nFields: ", "{m}\n=> ", "{m}\n", "Input: {m}\nOutput: ",
        "Read this: {m}\nWhat it says: ", "[{m}] "]


def record_of(rng, world, style, whole, with_label):
    """(message, record). whole: fields in the world's order and none for the missing ones."""
    text, pairs, label = message(rng, world)
    if whole:
        said = dict(pairs)
        pairs = [(f, said.get(f, "none")) for f in world[1]]
    if with_label:
        pairs = [("kind", label)] + pairs
    return text, style(pairs)


def extraction(rng):
    world, style, ask = rng.choice(WORLDS), rng.choice(STYLES), rng.choice(ASKS)
    whole, with_label = rng.random() < 0.4, rng.random() < 0.5
    parts = []
    for _ in range(rng.randrange(1, 6)):
        text, record = record_of(rng, world, style, whole, with_label)
        parts.append(ask.format(m=text) + record)
    return ("\n\n" if "\n" in ask else "\n").join(parts)


def backwards(rng):
    """From the record to a sentence."""
    world, style = rng.choice(WORLDS), rng.choice([s for s in STYLES if s is not as_values])
    parts = []
    for _ in range(rng.randrange(1, 4)):
        text, pairs, _ = message(rng, world)
        parts.append(f"Record: {style(pairs)}\nText: {text}")
    return "\n\n".join(parts)


def labelling(rng):
    world = rng.choice(WORLDS)
    names = sorted(world[2])
    parts = [rng.choice(["Labels: ", "Choose one of: ", "Kinds: "]) + ", ".join(names)]
    for _ in range(rng.randrange(2, 6)):
        text, _, label = message(rng, world)
        parts.append(f"{text} -> {label}")
    return "\n".join(parts)


def questions(rng):
    """A few messages, then questions about their fields."""
    world = rng.choice(WORLDS)
    said, parts, asked = [], [], []
    for _ in range(rng.randrange(1, 4)):
        text, pairs, _ = message(rng, world)
        said.append(text)
        asked += pairs[:3]
    rng.shuffle(asked)
    parts.append(" ".join(said) if len(said) == 1 else "\n".join(f"{i + 1}. {t}" for i, t in enumerate(said)))
    fields = [f for f, _ in asked]
    for field, value in asked:
        if fields.count(field) == 1:
            ask = rng.choice(["What is the {f}?", "Which {f}?", "Name the {f}.", "And the {f}?", "{f}?"])
            parts.append(f"Q: {ask.format(f=field)}\nA: {value}")
    return "\n".join(parts)


# ---- copying ---------------------------------------------------------------------------------------------------

VALUES = [lx.code, lx.code, lx.code, lx.person, lx.town, lx.email, lx.phone, lx.date, lx.clock, lx.price, lx.address,
          lx.thing, lambda r: lx.invented(r, 3), lambda r: lx.digits(r, r.randrange(3, 9))]


def copying(rng):
    make = rng.choice(VALUES)
    ask = rng.choice(["Copy: {v}\nCopy: {v}", "{v} -> {v}", "{v} = {v}", "Say {v}. {v}.", "{v}\n{v}", "\"{v}\" \"{v}\"",
                      "code {v}, again: {v}", "Repeat after me: {v}. \"{v}\""])
    return "\n".join(ask.format(v=make(rng)) for _ in range(rng.randrange(2, 10)))


def copied_list(rng):
    items = [rng.choice(VALUES)(rng) for _ in range(rng.randrange(3, 9))]
    line = ", ".join(items)
    how = rng.randrange(4)
    if how == 0:
        return f"List: {line}\nThe same list: {line}"
    if how == 1:
        return f"List: {line}\nBackwards: {', '.join(reversed(items))}"
    if how == 2:
        return f"List: {line}\nOne a line:\n" + "\n".join(f"{i + 1}. {v}" for i, v in enumerate(items))
    return f"List: {line}\nFirst: {items[0]}\nLast: {items[-1]}\nHow many: {len(items)}"


def dictionary(rng):
    """Pairs, then look-ups: the value stands beside the key that is asked for."""
    make_key, make_value = rng.choice(VALUES), rng.choice(VALUES)
    pairs = {make_key(rng): make_value(rng) for _ in range(rng.randrange(3, 8))}
    joint = rng.choice([": ", " = ", " -> ", " has ", " is "])
    lines = [k + joint + v for k, v in pairs.items()]
    for k in rng.sample(sorted(pairs), min(3, len(pairs))):
        lines.append(f"{k}{joint}{pairs[k]}" if rng.random() < 0.5 else f"Look up {k}: {pairs[k]}")
    return "\n".join(lines)


# ---- tables, lists and little stories ------------------------------------------------------------------------

COLUMNS = {"name": lx.first, "surname": lx.invented, "city": lx.town, "price": lx.price, "count": lx.small,
           "code": lx.code, "date": lx.date, "thing": lx.thing, "job": lambda r: r.choice(lx.JOB),
           "colour": lambda r: r.choice(lx.COLOUR), "mail": lx.email, "phone": lx.phone}


def table(rng):
    columns = rng.sample(sorted(COLUMNS), rng.randrange(2, 5))
    rows = [[COLUMNS[c](rng) for c in columns] for _ in range(rng.randrange(2, 6))]
    bar = rng.choice([" | ", ",", "; ", "\t"])
    lines = [bar.join(columns)] + [bar.join(r) for r in rows]
    for row in rng.sample(rows, min(3, len(rows))):
        i = rng.randrange(1, len(columns))
        shape = rng.randrange(3)
        if shape == 0:
            lines.append(f"The {columns[i]} of {row[0]} is {row[i]}.")
        elif shape == 1:
            lines.append(f"Q: {columns[0]} {row[0]}, which {columns[i]}?\nA: {row[i]}")
        else:
            lines.append(as_json(list(zip(columns, row))))
    return "\n".join(lines)


def card(rng):
    name, city, job = lx.person(rng), lx.town(rng), rng.choice(lx.JOB)
    mail, tel, home = lx.email(rng), lx.phone(rng), lx.address(rng)
    pairs = [("Name", name), ("City", city), ("Job", job), ("Mail", mail), ("Phone", tel), ("Address", home)]
    pairs = pairs[:1] + rng.sample(pairs[1:], rng.randrange(2, 6))
    say = {"City": f"lives in {city}", "Job": f"works as {lx.article(job)}", "Mail": f"writes from {mail}",
           "Phone": f"can be called at {tel}", "Address": f"has a house at {home}", "Name": ""}
    story = f"{name} " + " and ".join(say[k] for k, _ in pairs[1:]) + "."
    return as_lines(pairs) + "\n" + story if rng.random() < 0.5 else story + "\n" + as_lines(pairs)


def shopping(rng):
    n = rng.randrange(3, 8)
    food = rng.sample(lx.FOOD, n)
    cost = [rng.randrange(1, 30) for _ in food]
    who, where = lx.first(rng), lx.town(rng)
    lines = [f"{who} goes to the market in {where} and buys:"]
    lines += [f"- {f}, {c} coins" for f, c in zip(food, cost)]
    lines.append(f"Together {sum(cost)} coins. {who} bought {n} things: {', '.join(food[:-1])} and {food[-1]}.")
    return "\n".join(lines)


def story(rng):
    who, other, place = lx.first(rng), lx.first(rng), lx.town(rng)
    what, beast, colour = lx.thing(rng), rng.choice(lx.ANIMAL), rng.choice(lx.COLOUR)
    day, mood = rng.choice(lx.DAY), rng.choice(["happy", "sad", "angry", "tired", "proud", "afraid", "surprised"])
    first = [f"On {day} {who} lost {lx.article(colour)} {what} in {place}.",
             f"{who} had {lx.article(colour)} {what} and kept it in {place}.",
             f"In {place} lived {lx.article(beast)} that loved the {colour} {what} of {who}.",
             f"{who} and {other} met in {place} on {day}.",
             f"There was once {lx.article(rng.choice(lx.JOB))} called {who}, who owned {lx.article(colour)} {what}."]
    then = [f"{other} asked about the {what}.", f"The {beast} looked at {other}.", f"{other} found the {what} at last.",
            f"They carried the {what} home.", f"{who} gave the {what} to {other}.", f"It began to rain in {place}.",
            f"The {what} was {rng.choice(lx.ADJ)} and {rng.choice(lx.ADJ)}.", f"{other} fed the {beast}.",
            f"\"Where is my {what}?\" asked {who}. \"Here it is,\" said {other}."]
    end = [f"{who} was {mood}.", f"In the evening both were {mood}.", f"So {other} stayed in {place}."]
    text = " ".join([rng.choice(first)] + rng.sample(then, rng.randrange(2, 5)) + [rng.choice(end)])
    ask = [("Who is the story about?", who), ("Where was it?", place), ("What thing is in the story?", what)]
    return text + "\n" + "\n".join(f"Q: {q}\nA: {a}" for q, a in rng.sample(ask, rng.randrange(0, 3)) if a in text)


def facts(rng):
    lines = []
    for _ in range(rng.randrange(3, 9)):
        shape, i, n = rng.randrange(9), rng.randrange(12), rng.randrange(7)
        a, b = rng.randrange(0, 50), rng.randrange(0, 50)
        lines.append([
            f"{lx.MONTH[(i + 1) % 12]} comes after {lx.MONTH[i]}.", f"The day after {lx.DAY[n]} is {lx.DAY[(n + 1) % 7]}.",
            f"{a} + {b} = {a + b}", f"{max(a, b)} - {min(a, b)} = {abs(a - b)}",
            f"{max(a, b)} is not less than {min(a, b)}.", f"{lx.NUMBER[i]} is written {i}.",
            f"A {rng.choice(lx.ANIMAL)} is an animal and not a thing.", f"{rng.choice(lx.CITY)} is a city.",
            f"The word {rng.choice(lx.THING)} names a thing."][shape])
    return "\n".join(lines)


def letter(rng):
    """Everyday prose to an office: the words of complaints, thanks and requests, without any record."""
    who, name, what, day = lx.person(rng), lx.first(rng), lx.thing(rng), rng.choice(lx.DAY)
    body = [f"the {what} I bought on {day} is broken and does not work any more", f"my {what} has still not arrived",
            f"I waited the whole {day} but nobody came", f"the {what} was damaged when I opened the box",
            f"please cancel my {what}", f"I moved to {lx.address(rng)} in {lx.town(rng)}",
            f"I would like my money back for the {what}", f"the bill says {lx.price(rng)}, which is wrong",
            f"could you repair the {what} before {day}", f"please collect the old {what} at my house",
            f"I need an answer today, it is very urgent", f"there is no hurry", f"your driver was very kind",
            f"how much is {lx.article(what)} in {rng.choice(lx.COLOUR)}", f"the number is {lx.code(rng)}",
            f"the {what} makes a strange noise and leaks", f"we sent the {what} back to {lx.town(rng)}"]
    picks = rng.sample(body, rng.randrange(2, 5))
    text = ". ".join(p[0].upper() + p[1:] for p in picks)
    reply = rng.choice(["We are sorry and will look into it.", "Thank you for writing to us.",
                        f"Our office in {lx.town(rng)} will call you.", f"It will be done by {day}."])
    return f"Dear {name},\n{text}.\nYours, {who}\n\nDear {who},\n{reply}\n{name}"


KINDS = [(extraction, 30), (questions, 9), (labelling, 7), (backwards, 3), (copying, 10), (copied_list, 5),
         (dictionary, 8), (table, 9), (card, 5), (shopping, 2), (story, 6), (facts, 2), (letter, 4)]


# ---- chat --------------------------------------------------------------------------------------------------------

def turn(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def chat_record(rng):
    world, style = rng.choice(WORLDS), rng.choice(STYLES)
    whole, with_label = rng.random() < 0.5, rng.random() < 0.6
    messages = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": rng.choice(
            ["Answer with the record.", "Write down the fields.", f"You keep the {world[0]} book.", "Be short."])})
    for _ in range(rng.randrange(1, 4)):
        messages += turn(*record_of(rng, world, style, whole, with_label))
    return messages


def chat_label(rng):
    world, messages = rng.choice(WORLDS), []
    for _ in range(rng.randrange(1, 4)):
        text, _, label = message(rng, world)
        messages += turn(text, label)
    return messages


def chat_field(rng):
    text, pairs, _ = message(rng, rng.choice(WORLDS))
    field, value = rng.choice(pairs)
    return turn(f"{text} {rng.choice(['What is the', 'Tell me the', 'Which'])} {field}?", value)


def chat_copy(rng):
    value = rng.choice(VALUES)(rng)
    return turn(rng.choice(["Repeat: {}", "Say {}", "Copy {}", "Please write {} again."]).format(value), value)


CHATS = [(chat_record, 12), (chat_label, 3), (chat_field, 4), (chat_copy, 3)]


def write(path, rng, kinds, size, field):
    """Rows of random kinds until the file has the size asked for."""
    makers, weights = zip(*kinds)
    done = 0
    with open(path, "w", encoding="utf-8") as out:
        while done < size:
            make = rng.choices(makers, weights)[0]
            row = json.dumps({field: make(rng)}, ensure_ascii=False) + "\n"
            out.write(row)
            done += len(row.encode())
    print(f"{path}: {done} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for text.jsonl and chat.jsonl")
    parser.add_argument("--bytes", type=int, default=9000000, help="size of both together")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    write(os.path.join(args.out, "text.jsonl"), random.Random(args.seed), KINDS, args.bytes * 2 // 3, "text")
    write(os.path.join(args.out, "chat.jsonl"), random.Random(args.seed + 1), CHATS, args.bytes // 3, "messages")


if __name__ == "__main__":
    main()
