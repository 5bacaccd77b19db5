"""Words, names and value makers shared by make_text.py and make_domain.py.

Everything here is written for the project or invented by the functions below. A value maker takes a
random.Random and returns a string. Invented names are built from syllables, so that a model cannot know
them by heart and has to copy them.
"""

FIRST = """Ada Alan Alma Amir Anna Anton Arthur Aya Ben Bella Boris Carla Cecil Chloe Clara Daniel Dora Edgar Edith
Elena Eli Emil Emma Erik Esther Eva Farah Felix Fiona Frank George Grace Greta Hana Harry Hassan Helen Henry Hugo Ida
Igor Ines Irene Isaac Ivan Jane Jasper Joan Jonas Jose Julia Kamal Karen Karl Kate Kenji Lara Lena Leo Lewis Lily Linda
Louis Lucia Luis Maria Mark Marta Martin Maya Mina Mona Nadia Nina Noah Nora Olga Oliver Oscar Otto Paula Pedro Peter
Petra Priya Quinn Rachel Ravi Rita Robert Rosa Ruth Samir Sara Simon Sofia Stella Tara Theo Tom Uma Vera Victor Viola
Walter Wanda Yara Yusuf Zara Zoe""".split()

LAST = """Abbott Adler Baker Banks Barlow Bauer Becker Bell Bishop Blake Bond Brandt Brooks Brown Carter Castro Chen Clark
Cole Cooper Costa Cruz Dale Davis Dean Diaz Dixon Drake Duarte Evans Farmer Fischer Fisher Ford Fox Frost Garcia Gibson
Grant Green Gupta Haas Hall Hardy Harper Hayes Hill Holt Hope Hunt Ito Jackson James Jensen Johnson Jones Kaya Keller
Kelly Khan King Klein Knight Lane Larsen Lee Lopez Marsh Martin Mason Meyer Miller Moore Moreno Morris Murphy Nash
Nelson Nguyen Novak Olsen Owen Page Palmer Park Parker Patel Perez Perry Pierce Porter Quill Reed Reyes Rice Rios
Rossi Ryan Sato Schmidt Scott Shaw Silva Singh Smith Snow Stone Sutton Tan Taylor Thomas Tran Turner Vance Vega Wagner
Walker Wang Ward Weber West White Wood Wright Young Zimmer""".split()

CITY = """Aberdeen Alton Amsterdam Athens Austin Bath Belfast Bergen Berlin Bern Boston Bremen Brighton Bristol Brno Cairo
Calgary Cambridge Cardiff Chester Chicago Cologne Cork Dallas Delhi Denver Derby Dover Dresden Dublin Dundee Durham
Edinburgh Essen Exeter Florence Geneva Genoa Ghent Glasgow Graz Hamburg Hanover Hull Kyoto Lagos Leeds Leipzig Lima
Lincoln Lisbon London Lyon Madrid Malmo Manchester Memphis Milan Monaco Munich Nairobi Naples Newport Norwich Odessa
Oslo Oxford Paris Perth Plymouth Porto Prague Preston Quebec Reading Riga Rome Salem Seattle Seville Sofia Stockton
Sydney Tampa Tokyo Toledo Toronto Trieste Tunis Turin Utrecht Venice Verona Vienna Warsaw Windsor York Zagreb
Zurich""".split()

COLOUR = "red blue green yellow black white brown grey orange purple pink silver golden dark pale bright".split()
MONTH = "January February March April May June July August September October November December".split()
DAY = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBER = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()
STREET = "Mill Church Station Park Bridge High Oak Elm River Castle Garden Queen King Market School Hill Abbey Forest".split()
WAY = "Street Road Lane Avenue Square Way Close Row".split()
MAIL_HOST = "example.com mail.example post.example example.org inbox.example".split()

THING = """apple bag ball basket bell bench bicycle blanket boat book bottle bowl box bread bridge broom brush bucket button
cabinet cake camera candle car carpet chair cheese clock coat coin comb cup curtain desk door drum engine fan fence
flag flute fork glass glove guitar hammer hat heater helmet jacket jar kettle key kite knife ladder lamp laptop lens
letter lock map mask mattress mirror mug nail necklace needle oven pan paper pen pencil phone piano picture pillow pipe
plate pot printer pump radio ring rope ruler saddle saw scale scarf screen shelf shirt shoe shovel sink soap sofa spoon
stamp stove suitcase switch table tablet tap tent toaster towel toy tray trumpet umbrella vase violin wallet watch
wheel whistle window wire""".split()

ANIMAL = """ant badger bat bear beaver bee camel cat cow crab crow deer dog dolphin donkey duck eagle elephant falcon fish
fox frog goat goose hare hawk hen horse jackal lion lizard mole monkey moose mouse otter owl ox parrot pig pony rabbit
rat raven robin seal shark sheep snail snake spider squirrel swan tiger toad trout turtle whale wolf zebra""".split()

FOOD = """apples bananas beans beef beer bread butter cabbage carrots cheese cherries chicken chocolate coffee corn cream
dates eggs figs flour garlic grapes ham honey jam juice lamb lemons lentils milk mint mushrooms nuts oats oil olives
onions oranges pasta peaches pears peas pepper plums pork potatoes raisins rice salad salt sausages soup spinach sugar
tea tomatoes vinegar walnuts water wine yogurt""".split()

JOB = """actor artist baker barber builder butcher captain carpenter chemist clerk cook dancer dentist doctor driver editor
engineer farmer fisher gardener guard guide judge lawyer librarian mechanic miner musician nurse painter pilot plumber
poet porter printer sailor scientist singer smith soldier student tailor teacher waiter weaver writer""".split()

ADJ = """big small old new long short heavy light clean dirty warm cold fast slow quiet loud soft hard rich poor strong weak
early late easy difficult empty full open closed dry wet thin thick young wide narrow sharp dull sweet bitter""".split()

_ONSET = "b br c ch d dr f fl g gr h j k l m n p pr qu r s sh st t th tr v w z".split()
_VOWEL = "a e i o u ai ea ee oa ou ar er or an en in on el al il".split()
_CODA = ["", "", "n", "r", "l", "s", "m", "d", "t", "ck", "nd", "rn", "th", "x"]
_TOWN_END = "ton ham ford bury field mouth wick dale stead burg port bridge haven by worth".split()
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def invented(rng, syllables=2):
    """An invented word such as Brenorth: syllables of onset, vowel and coda, first letter upper case."""
    word = "".join(rng.choice(_ONSET) + rng.choice(_VOWEL) + rng.choice(_CODA) for _ in range(syllables))
    return word[0].upper() + word[1:]


def town(rng):
    """Half real city names, half invented ones."""
    if rng.random() < 0.5:
        return rng.choice(CITY)
    return invented(rng, 1) + rng.choice(_TOWN_END)


def first(rng):
    return rng.choice(FIRST) if rng.random() < 0.7 else invented(rng)


def person(rng):
    last = rng.choice(LAST) if rng.random() < 0.6 else invented(rng)
    return first(rng) + " " + last


def digits(rng, n):
    """n digits, the first not 0."""
    return str(rng.randrange(1, 10)) + "".join(str(rng.randrange(10)) for _ in range(n - 1))


def letters(rng, n):
    return "".join(rng.choice(LETTERS) for _ in range(n))


def code(rng):
    """An identifier: letters and digits in one of several usual shapes."""
    shape = rng.randrange(7)
    if shape == 0:
        return letters(rng, 2) + "-" + digits(rng, 4)
    if shape == 1:
        return letters(rng, 1) + digits(rng, rng.randrange(3, 6))
    if shape == 2:
        return digits(rng, rng.randrange(4, 8))
    if shape == 3:
        return digits(rng, 2) + "-" + digits(rng, 3) + "-" + letters(rng, 1)
    if shape == 4:
        return letters(rng, 3) + digits(rng, 3)
    if shape == 5:
        return "#" + digits(rng, rng.randrange(3, 6))
    return letters(rng, 2) + digits(rng, 2) + "/" + digits(rng, 3)


def date(rng):
    d, m, y = rng.randrange(1, 29), rng.randrange(12), rng.randrange(1990, 2031)
    shape = rng.randrange(4)
    if shape == 0:
        return f"{y}-{m + 1:02d}-{d:02d}"
    if shape == 1:
        return f"{d} {MONTH[m]} {y}"
    if shape == 2:
        return f"{MONTH[m]} {d}"
    return f"{d:02d}.{m + 1:02d}.{y}"


def clock(rng):
    return f"{rng.randrange(24):02d}:{rng.choice([0, 5, 10, 15, 20, 30, 40, 45, 50]):02d}"


def price(rng):
    return f"{rng.randrange(1, 400)}.{rng.choice([0, 20, 25, 50, 75, 90, 95, 99]):02d}"


def email(rng):
    name = first(rng).lower()
    tail = rng.choice(["", "." + rng.choice(LAST).lower(), digits(rng, 2), "_" + invented(rng, 1).lower()])
    return f"{name}{tail}@{rng.choice(MAIL_HOST)}"


def phone(rng):
    return rng.choice(["0{} {}", "+{} {}", "0{}-{}"]).format(digits(rng, 3), digits(rng, 6))


def address(rng):
    return f"{rng.randrange(1, 200)} {rng.choice(STREET)} {rng.choice(WAY)}"


def thing(rng):
    return rng.choice(THING)


def small(rng):
    return str(rng.randrange(2, 20))


def article(word):
    """The word with its indefinite article."""
    return ("an " if word[0].lower() in "aeiou" else "a ") + word
