#!/usr/bin/env python3
"""Write the sample task: messages to the repair and parcel service Larkfield, and the record its desk keeps of each.

    python3 data/samples/make_domain.py --out data/samples/domain

makes OUT/train.jsonl and OUT/heldout.jsonl, rows {"messages": [user, assistant]}. Same arguments, same bytes. The
answer is one line of five fields, for example

    intent: repair; item: kettle; order: RX-4821; city: Leeds; urgent: yes

A message is made of sentences, a sentence of a frame. No frame of the held-out rows, whatever it says, is a frame of
the training rows; all order numbers of the held-out rows are new too, and a tenth of the towns are invented ones that
must be copied letter by letter. What both share are the items and the words that tell the intent (CUES): without them
the task would be a guess. Asserted below, not hoped for.
"""

import argparse
import json
import os
import random
import re

import lexicon as lx

CUES = {
    "repair": ["repair", "broken", "fix", "stopped working"],
    "return": ["return", "send back"],
    "refund": ["refund", "money back"],
    "delay": ["late", "not arrived", "still waiting"],
    "cancel": ["cancel", "call off"],
    "move": ["moved", "new address"],
    "pickup": ["collect", "pick up"],
    "price": ["how much", "price", "cost"],
}

# Per intent: frames of the training rows, frames of the held-out rows.
CORE = {
    "repair": (
        ["My {item} is broken.", "Please repair my {item}.", "The {item} stopped working this week.",
         "Can somebody fix our {item}?", "I need a repair for the {item}.", "Our {item} has been broken since Monday.",
         "Who can repair the {item} for me?", "The {item} you sold me is already broken.",
         "My old {item} has stopped working.", "We want you to fix the {item}.", "The {item} fell down and is broken.",
         "It would be good if you could repair the {item}.", "You promised to fix my {item}.",
         "There is a broken {item} in my kitchen."],
        ["Could you please repair the {item} we bought?", "I am afraid our {item} is broken now.",
         "After one month the {item} stopped working.", "Is it possible to fix this {item}?",
         "Someone dropped the {item} and it is broken.", "A repair of my {item} is needed."]),
    "return": (
        ["I want to return the {item}.", "How can I return my {item}?", "We would like to send back the {item}.",
         "Please tell me how to send back a {item}.", "I must return this {item}.", "My wife wants to return the {item}.",
         "Can I send back the {item} I got?", "The {item} is too big, so I return it.",
         "I have packed the {item} and will return it.", "The {item} has the wrong colour and I will send back all of it.",
         "Let me return the {item}, please.", "We have to send back our {item}.",
         "I do not like the {item} and want to return it.", "A return label for the {item}, please."],
        ["Is it possible to return our {item}?", "I have decided to send back this {item}.",
         "The {item} does not fit, may I return it?", "We wish to return one {item}.",
         "What must I do to send back my {item}?", "Because the {item} is too small I would return it."]),
    "refund": (
        ["I want my money back for the {item}.", "Please refund the {item}.", "When do I get the refund for my {item}?",
         "You owe me a refund for the {item}.", "Give me my money back, the {item} is poor.",
         "I asked for a refund of the {item}.", "The {item} is bad and I want a refund.",
         "We did not get our money back for the {item}.", "Can you refund our {item}?",
         "My refund for the {item} is missing.", "I paid twice for the {item}, so I ask for a refund.",
         "How do I get my money back for this {item}?", "A refund for the {item}, please.",
         "The shop said you would refund the {item}."],
        ["Would you refund this {item} to me?", "I am asking for my money back because of the {item}.",
         "Has the refund of our {item} been sent?", "We expect a refund for one {item}.",
         "For the {item} I would like my money back.", "Kindly refund what I paid for the {item}."]),
    "delay": (
        ["My {item} has not arrived.", "The {item} is late.", "I am still waiting for the {item}.",
         "Why is my {item} so late?", "The parcel with the {item} has not arrived yet.",
         "We are still waiting for our {item}.", "The {item} is a week late.", "Where is the {item}? It has not arrived.",
         "You said Friday, but the {item} has not arrived.", "Still waiting for a {item} from you.",
         "The driver with my {item} is late.", "My mother is still waiting for her {item}.",
         "The {item} should be here, it is late.", "So far the {item} has not arrived."],
        ["Our {item} is late again.", "It seems that the {item} has not arrived.",
         "My family is still waiting for this {item}.", "Ten days, and my {item} has not arrived!",
         "Do you know why the {item} is late?", "I ordered a {item} and am still waiting."]),
    "cancel": (
        ["Please cancel the {item}.", "I want to cancel my {item}.", "We have to call off the {item}.",
         "Can I still cancel the {item}?", "Cancel the {item}, please.", "I changed my mind, please cancel the {item}.",
         "My son ordered a {item} by mistake, cancel it.", "I would like to call off the {item}.",
         "Is it too far to cancel our {item}?", "We bought the {item} elsewhere, so cancel ours.",
         "You may call off the {item}.", "I must cancel the {item} I ordered.", "Do cancel the {item} for us.",
         "I no longer need the {item} and cancel it."],
        ["Could you cancel this {item} for me?", "I have to call off my {item}.",
         "The {item} is not needed any more, please cancel.", "We decided to cancel one {item}.",
         "How do I cancel a {item}?", "I wish to cancel the {item} of last week."]),
    "move": (
        ["I moved, bring the {item} to my home.", "The {item} has to go to a new address.",
         "We moved last week; the {item} must follow.", "Please note my new address for the {item}.",
         "Send the {item} to our new address.", "I have moved and still expect the {item}.",
         "My new address is for the {item} too.", "Since we moved, the {item} needs another label.",
         "There is a new address for the {item}.", "She moved, so the {item} goes to her flat.",
         "Use the new address for my {item}.", "I just moved; do not bring the {item} to the old house.",
         "Can the {item} go to a new address?", "We have moved, keep that in mind for the {item}."],
        ["Our new address should be used for the {item}.", "As I moved, the {item} goes to another house.",
         "Would you bring the {item} to my new address?", "My parents moved, and the {item} is for them.",
         "Take down a new address for this {item}.", "Last month we moved, please change it for the {item}."]),
    "pickup": (
        ["Please collect the {item}.", "When will you collect my {item}?", "Can you pick up the {item}?",
         "The {item} is ready, please pick up.", "Somebody should collect our {item}.", "I want you to pick up a {item}.",
         "Your driver may collect the {item} at my door.", "Come and collect the {item}.",
         "You can pick up the {item} after six.", "We need you to collect one {item}.",
         "Nobody came to collect the {item}.", "A driver must pick up our {item}.",
         "Could the driver pick up my {item}?", "I have an old {item} for you to collect."],
        ["Would you collect this {item}?", "Is there a driver to pick up the {item}?",
         "The {item} stands at the gate for you to collect.", "My neighbour asks you to pick up her {item}.",
         "It is time to collect the {item}.", "Send a van to pick up the {item}."]),
    "price": (
        ["How much is the {item}?", "What is the price of a {item}?", "What does the {item} cost?",
         "Tell me the price of the {item}.", "I would like to know how much a {item} is.",
         "The {item} must not cost too much.", "Which price do you ask for the {item}?",
         "How much do I pay for my {item}?", "May I know the price for one {item}?",
         "What would a {item} cost me?", "Is the price of the {item} final?",
         "Please write how much the {item} is.", "What will the {item} cost at the end?",
         "I only ask for the price of the {item}."],
        ["Could you name the price of this {item}?", "We ask how much our {item} is.",
         "What does one {item} cost now?", "Give me a price for the {item}.",
         "How much would you take for the {item}?", "I wonder what my {item} will cost."]),
}

ORDER = (
    ["The order number is {order}.", "Order {order}.", "My order is {order}.", "It is order {order}.", "Order no. {order}.",
     "See order {order}.", "The number is {order}.", "This is about {order}.", "Our order was {order}.",
     "I have the number {order} here.", "On the bill it says {order}.", "You gave it the number {order}.",
     "Order number: {order}.", "Number: {order}.", "The bill says {order}.", "They gave me {order} as its number.",
     "It has {order} as number.", "Look at number {order}."],
    ["The order has the number {order}.", "It belongs to order {order}.", "I was given {order} as order number.",
     "My number: {order}.", "Please look at order {order}.", "The bill is {order}."])

PLACE = (
    ["I live in {city}.", "We are in {city}.", "My home is in {city}.", "I am in {city}.", "The house is in {city}.",
     "City: {city}.", "I write from {city}.", "Our flat is in {city}.", "It is in {city}.", "You find us in {city}.",
     "The town is {city}.", "We live near the station in {city}."],
    ["My house is in {city}.", "We live in {city}.", "I am writing to you from {city}.", "The place is {city}.",
     "You can find me in {city}.", "Our town is {city}."])

URGENT = (
    ["This is urgent!", "It is urgent.", "I need it today.", "Please act at once.", "Quickly, please, it is urgent.",
     "It must be done today.", "Very urgent!", "Do it at once."],
    ["The matter is urgent.", "I am sorry, but it is urgent!", "Please do this today.", "You have to act at once."])

CALM = (
    ["", "", "", "", "There is no hurry.", "Take your time.", "No hurry.", "It can wait.", "You may take your time.",
     "I am in no hurry."],
    ["", "", "We are in no hurry.", "Please take your time.", "That can wait."])

GREETING = (
    ["", "", "", "Hello.", "Good morning.", "Dear Larkfield team,", "Hi,", "Good day,", "Hello again,", "To the desk:"],
    ["", "", "Hi there.", "Good evening.", "Dear Sir or Madam,", "Hello Larkfield,"])

THANKS = (
    ["", "", "", "Thank you.", "Thanks!", "Best regards", "Yours, {name}", "My name is {name}.", "{name}"],
    ["", "", "Many thanks.", "Kind regards, {name}", "This is {name}."])

ITEM = """kettle toaster laptop printer camera radio lamp heater fan phone tablet screen oven stove mixer drill sofa table
    chair desk bed cupboard carpet mirror clock watch guitar piano bicycle helmet tent suitcase umbrella jacket coat
    vase picture ladder pump saw fridge freezer blender keyboard violin shelf bench mattress scooter""".split() + [
        "washing machine", "coffee machine", "sewing machine", "garden table", "desk lamp", "alarm clock",
        "vacuum cleaner", "garden bench"]

ASCII_WORD = re.compile(r"[a-z]+")


def frames(part):
    """Every frame of the training rows (part 0) or of the held-out rows (part 1)."""
    found = [f for pair in CORE.values() for f in pair[part]]
    for pair in (ORDER, PLACE, URGENT, CALM, GREETING, THANKS):
        found += [f for f in pair[part] if f]
    return found


def plain(text):
    """Words only, in lower case: two frames that differ in a comma are one."""
    return " ".join(ASCII_WORD.findall(text.lower()))


def cues_in(frame):
    words = " " + plain(frame) + " "
    return {intent for intent, cues in CUES.items() if any(" " + c + " " in words for c in cues)}


def check_frames():
    train, held = [{plain(f) for f in frames(part)} for part in (0, 1)]
    assert not train & held, train & held
    for intent, pair in CORE.items():
        for frame in pair[0] + pair[1]:
            assert cues_in(frame) == {intent}, (intent, frame, cues_in(frame))
    for pair in (ORDER, PLACE, URGENT, CALM, GREETING, THANKS):
        for frame in pair[0] + pair[1]:
            assert not cues_in(frame), frame


def order_number(rng):
    if rng.random() < 0.5:
        return lx.letters(rng, 2) + "-" + lx.digits(rng, 4)
    return lx.letters(rng, 1) + lx.digits(rng, 5)


def make_row(rng, part, intent):
    """One row; the order of the sentences varies, and a place is missing in one of six messages."""
    town = rng.choice(lx.CITY) if rng.random() < 0.8 else lx.town(rng)
    item, order, city, name = rng.choice(ITEM), order_number(rng), town, lx.first(rng)
    urgent, placed = rng.random() < 0.4, rng.random() < 5 / 6
    middle = [rng.choice(CORE[intent][part]), rng.choice(ORDER[part])]
    if placed:
        middle.append(rng.choice(PLACE[part]))
    hurry = rng.choice((URGENT if urgent else CALM)[part])
    if hurry:
        middle.append(hurry)
    if rng.random() < 0.5:
        rng.shuffle(middle)
    parts = [rng.choice(GREETING[part])] + middle + [rng.choice(THANKS[part])]
    text = " ".join(p for p in parts if p).format(item=item, order=order, city=city, name=name)
    answer = (f"intent: {intent}; item: {item}; order: {order}; city: {city if placed else 'none'}; "
              f"urgent: {'yes' if urgent else 'no'}")
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def rows(rng, part, n, seen):
    """n rows, the intents in turn, no message twice and none whose text or order number is in seen."""
    made, intents = [], sorted(CORE)
    while len(made) < n:
        row = make_row(rng, part, intents[len(made) % len(intents)])
        text, answer = (m["content"] for m in row["messages"])
        order = re.search("order: ([^;]*)", answer).group(1)
        if plain(text) not in seen and order not in seen:
            seen |= {plain(text), order}
            made.append(row)
    rng.shuffle(made)
    return made


def check_rows(train, held):
    """No message of the held-out rows is a training message, and none holds a training frame."""
    said = {plain(r["messages"][0]["content"]) for r in train}
    known = {plain(f) for f in frames(0)}
    for row in held:
        text, answer = (m["content"] for m in row["messages"])
        assert plain(text) not in said, text
        for field in answer.split("; ")[1:4]:
            slot, value = field.split(": ")
            text = text.replace(value, "{" + slot + "}") if value != "none" else text
        for sentence in re.split(r"(?<=[.!?]) ", text):
            assert plain(sentence) not in known, sentence


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--train", type=int, default=2800)
    parser.add_argument("--heldout", type=int, default=400)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    check_frames()
    rng, seen = random.Random(args.seed), set()
    train = rows(rng, 0, args.train, seen)
    held = rows(rng, 1, args.heldout, seen)
    check_rows(train, held)
    os.makedirs(args.out, exist_ok=True)
    for name, made in (("train", train), ("heldout", held)):
        path = os.path.join(args.out, name + ".jsonl")
        with open(path, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in made)
        print(f"{path}: {len(made)} rows, {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
