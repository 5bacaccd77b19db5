"""Small worlds for the pre-training text: what a message may say and which fields it holds.

A world is (name, {field: value maker}, {label: [sentence frames]}). A frame names its fields in braces. None of the
worlds is about repairs, parcels or orders: that is the sample task (make_domain.py), which a base model must not
have seen.
"""

import lexicon as lx


def room(rng):
    return lx.digits(rng, 3)


def word(rng):
    return lx.invented(rng, 2)


def degrees(rng):
    return str(rng.randrange(-9, 35))


WORLDS = [
    ("hotel", {"guest": lx.person, "room": room, "date": lx.date, "nights": lx.small, "city": lx.town}, {
        "booking": ["{guest} would like to book a room in {city} for {nights} nights from {date}.",
                    "Please book {nights} nights for {guest}, arriving on {date}.",
                    "A room for {guest} in {city}, please, starting {date}.",
                    "I want a booking in {city} on {date}. My name is {guest}."],
        "checkout": ["{guest} is leaving room {room} on {date}.", "Room {room} will be empty from {date}.",
                     "The bill for room {room}, please. Signed, {guest}.", "{guest} has paid and left room {room}."],
        "complaint": ["It is too loud in room {room}, says {guest}.", "The bed in room {room} is broken. {guest}",
                      "{guest} complained about the cold in room {room}.",
                      "There is no hot water in {room}. This is {guest} speaking."]}),
    ("library", {"reader": lx.person, "book": word, "shelf": lx.code, "date": lx.date}, {
        "borrow": ["{reader} borrowed the book {book} on {date}.", "I would like to borrow {book} until {date}.",
                   "May {reader} take {book} from shelf {shelf} home?"],
        "return": ["{reader} brought back {book}; it goes to shelf {shelf}.", "Here is {book} again. Yours, {reader}",
                   "The book {book} came back on {date}."],
        "search": ["Where can I find {book}?", "{reader} is looking for {book}, perhaps on shelf {shelf}.",
                   "Do you have a copy of {book}? My name is {reader}."]}),
    ("school", {"pupil": lx.person, "teacher": lx.person, "class": lx.code, "day": lambda r: r.choice(lx.DAY),
                "time": lx.clock}, {
        "absent": ["{pupil} is ill and will miss class {class} on {day}.", "{pupil} cannot come on {day}.",
                   "Dear {teacher}, {pupil} has to stay at home on {day}."],
        "lesson": ["{teacher} teaches {class} on {day} at {time}.", "Class {class} begins at {time} with {teacher}.",
                   "On {day} at {time} there is a lesson with {teacher}."],
        "exam": ["The exam of {class} is on {day} at {time}.", "{pupil} passed the exam in {class}.",
                 "{teacher} will hold the exam on {day}."]}),
    ("weather", {"city": lx.town, "degrees": degrees, "day": lambda r: r.choice(lx.DAY)}, {
        "sunny": ["Bright sun over {city} on {day}, {degrees} degrees.", "A clear sky in {city}, up to {degrees}.",
                  "{day}: the sun shines in {city} at {degrees} degrees."],
        "rain": ["Heavy rain in {city} on {day}.", "Take an umbrella in {city}: showers and {degrees} degrees.",
                 "It will rain in {city} until {day}; {degrees} degrees."],
        "snow": ["Snow is falling in {city}, {degrees} degrees.", "On {day} {city} lies under deep snow.",
                 "White roofs in {city} on {day}: snow at {degrees} degrees."]}),
    ("ship", {"vessel": word, "captain": lx.person, "port": lx.town, "cargo": lambda r: r.choice(lx.FOOD),
              "tons": lx.small}, {
        "arrival": ["The {vessel} reached {port} with {tons} tons of {cargo}.",
                    "Captain {captain} brought the {vessel} into {port}.", "Now in harbour: {vessel}, from {port}."],
        "departure": ["The {vessel} sails for {port} tonight.", "{captain} leaves {port} with {cargo} on board.",
                      "Bound for {port}: the {vessel} under {captain}, carrying {cargo}."],
        "storm": ["The {vessel} met a storm near {port}.", "High waves; {vessel} waits off {port}, says {captain}.",
                  "{captain} lost {tons} tons of {cargo} in the storm."]}),
    ("bank", {"client": lx.person, "account": lx.code, "amount": lx.price, "date": lx.date, "to": lx.person}, {
        "transfer": ["Send {amount} from account {account} to {to}.", "{client} transfers {amount} to {to} on {date}.",
                     "Please move {amount} to {to}. My account is {account}."],
        "deposit": ["{client} paid {amount} into {account}.", "On {date} {amount} arrived in account {account}.",
                    "I put {amount} on {account} today, {client}."],
        "balance": ["How much money is in {account}?", "{client} asks for the balance of {account}.",
                    "Tell me what is left in account {account}. {client}"]}),
    ("sport", {"home": lx.town, "away": lx.town, "goals": lx.small, "player": lx.person}, {
        "win": ["{home} beat {away} with {goals} points.", "A fine day for {home}: {goals} goals against {away}.",
                "{player} scored {goals} times and {home} won."],
        "loss": ["{home} lost to {away}.", "{away} was too strong for {home}; even {player} could not help.",
                 "No luck for {player}: {home} lost by {goals}."],
        "draw": ["{home} and {away} shared the points.", "No winner between {home} and {away} ({goals} each).",
                 "{player} made it even for {home}."]}),
    ("lab", {"sample": lx.code, "person": lx.person, "mass": lx.price, "date": lx.date}, {
        "received": ["Sample {sample} came in on {date}.", "{person} handed in sample {sample}, {mass} grams.",
                     "New in the laboratory: {sample}, weight {mass}."],
        "tested": ["{person} tested {sample} on {date}.", "The test of {sample} gave {mass} grams.",
                   "Result for {sample}: {mass}. Checked by {person}."],
        "lost": ["Sample {sample} is missing since {date}.", "{person} cannot find {sample}.",
                 "Nobody knows where {sample} is. Ask {person}."]}),
    ("cinema", {"film": word, "seat": lx.code, "time": lx.clock, "visitor": lx.person}, {
        "ticket": ["Two tickets for {film} at {time}, please.", "{visitor} takes seat {seat} for {film}.",
                   "I would like to see {film} at {time}, seat {seat}."],
        "question": ["When does {film} start?", "{visitor} wants to know how long {film} is.",
                     "Is seat {seat} still free for {film}?"],
        "praise": ["{visitor} loved {film}.", "What a wonderful film {film} was! {visitor}",
                   "Great sound at {time} from seat {seat}."]}),
    ("clinic", {"patient": lx.person, "doctor": lx.person, "time": lx.clock, "date": lx.date, "phone": lx.phone}, {
        "visit": ["{patient} sees {doctor} on {date} at {time}.", "An appointment for {patient} at {time}, please.",
                  "{doctor} has time for {patient} on {date}."],
        "callback": ["Please call {patient} at {phone}.", "{patient} waits for a call, number {phone}.",
                     "{doctor} should ring {phone}."],
        "change": ["{patient} has to move the appointment to {date}.", "Can {patient} come at {time} instead?",
                   "{doctor} is away on {date}, {patient} comes later."]}),
    ("garden", {"plant": word, "bed": lx.code, "litres": lx.small, "gardener": lx.person}, {
        "water": ["{gardener} gave {litres} litres to {plant}.", "The {plant} in bed {bed} needs {litres} litres.",
                  "Too dry in bed {bed}: water the {plant}."],
        "plant": ["{gardener} planted {plant} in bed {bed}.", "Put the {plant} into bed {bed}.",
                  "New in bed {bed}: {litres} young {plant}."],
        "cut": ["{plant} in {bed} has grown too tall; cut it.", "{gardener} will cut the {plant}.",
                "Time to cut {litres} branches of {plant}."]}),
    ("computer", {"user": lx.email, "machine": lx.code, "version": lambda r: f"{r.randrange(9)}.{r.randrange(20)}",
                  "program": word}, {
        "login": ["{user} cannot log in to {machine}.", "Wrong password for {user}.",
                  "The account {user} is locked on {machine}."],
        "crash": ["{program} {version} stops at once on {machine}.", "{machine} went down with {program}.",
                  "{user} reports a crash of {program}, version {version}."],
        "install": ["Please install {program} {version} on {machine}.", "{user} needs {program} on {machine}.",
                    "Can I have {program} {version}? My address is {user}."]}),
]

OPENING = ["", "", "", "", "Hello, ", "Good morning. ", "Hi there. ", "Dear all, ", "Note: ", "By the way: ", "Hello again. "]
CLOSING = ["", "", "", "", " Thank you.", " Thanks!", " That is all.", " Best regards.", " Please answer soon.",
           " I can wait.", " It is not urgent.", " This is urgent."]
