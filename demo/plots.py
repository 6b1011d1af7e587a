"""The sentences of the stories: slots with alternatives, in the order in which a plot tells them. Data only.

Placeholders: hero {A} "a little fox" {hero} {N} {he} {him} {his} {He} {His}; friend {fa} "an old owl" {friend} {F}
{fhe} {fhim} {fhis} {Fhe} {Fhis}; object {o} "lantern" {ao} "a lantern" {aao} "an old lantern"; {at} {to} the scene;
{home} where the hero lives; {spot} {treat} {weather} {time} {moral}. "" starts a paragraph.
"""

from demo.rescues import HELPS, Slot

OPENING: Slot = (
    "Once upon a time, {A} named {N} lived {home}.",
    "There was once {A} called {N} who lived {home}.",
    "Long ago, {home}, there lived {A} whose name was {N}.",
    "{N} was {A} who lived {home}.",
    "This is the story of {N}, {A} who lived {home}.",
)

WITH_OBJECT: Slot = (
    "{N} had {aao}, and {he} took it everywhere.",
    "More than anything, {he} loved {his} {o}, which was a gift from {his} grandmother.",
    "In the corner of {his} room stood {aao}, and every evening {N} polished it.",
    "{His} greatest treasure was {aao}.",
)

WITH_FOOD: Slot = (
    "{N} had {aao}, and it smelled wonderful.",
    "In {his} bag {he} always carried {aao} for the way.",
    "{His} greatest treasure was {aao}, for {he} was often hungry.",
)

WITH_VEHICLE: Slot = (
    "{N} had {aao} and took very good care of it.",
    "{His} greatest treasure was {aao}.",
    "More than anything, {he} loved {his} {o}, which {he} had built with {his} grandfather.",
)

FINDS_OBJECT: Slot = (
    "One {weather} {time}, {he} found {aao} {spot}.",
    "One {weather} {time}, {N} went for a walk and saw {aao} {spot}.",
    "On a {weather} {time}, something caught {his} eye. It was {aao}, lying {spot}.",
)

WITH_FRIEND: Slot = (
    "{His} best friend was {fa} named {F}.",
    "Next door lived {fa} called {F}.",
    "{N} often played with {F}, {fa}.",
    "Every day {he} visited {F}, {fa} who told the best jokes.",
)

MEETS_FRIEND: Slot = (
    "On the way {he} met {fa} named {F}.",
    "Soon {fa} called {F} came along the path.",
    "Just then {fa} looked around the corner. {Fhis} name was {F}.",
)

ENDING: Slot = (
    "From that day on, {N} and {F} were the best of friends, and {N} never forgot that {moral}.",
    "That night, {N} fell asleep with a smile, because {he} had learned that {moral}.",
    'They walked home together and shared {treat}. "You see," said {F}, "{moral}."',
    "And whenever somebody asked about the {o}, {N} smiled and said that {moral}.",
    "Then they had {treat} by the fire and laughed until the stars came out. {N} knew now that {moral}.",
    "And if you ever go there, you may still see {N} and {F} with the {o}, happy as can be.",
)

LOST: tuple[Slot, ...] = (
    OPENING,
    WITH_OBJECT,
    ("",),
    (
        "But one {weather} {time}, the {o} was gone!",
        "One {weather} {time}, {N} woke up and the {o} was missing.",
        "Then, on a {weather} {time}, {he} came home and could not find the {o}.",
    ),
    (
        "{He} looked under the bed and behind the door, but it was not there.",
        "{N} searched the whole house from top to bottom and found nothing but dust.",
        "{He} turned every cup and every cushion upside down. Nothing!",
    ),
    (
        '"Oh dear," said {N}, and a tear ran down {his} cheek.',
        '"Where can it be?" cried {N}.',
        '"I must find it before dark," said {N}.',
    ),
    ("",),
    MEETS_FRIEND,
    (
        '"Do not cry," said {F}. "Let us look together. Where did you have it last?"',
        '"I will help you," said {F}. "Four eyes see more than two."',
        '"Think back," said {F}. "Where were you yesterday?"',
    ),
    (
        '"Of course!" said {N}, and they ran {to}.',
        "{N} remembered a walk {at}, so they went back there step by step.",
        "They followed {his} own footprints {to}.",
    ),
    (
        "They looked for a long time, and then {F} pointed. There was the {o}, {spot}!",
        "At last, {spot}, something was waiting for them. It was the {o}!",
        "And there, {spot}, lay the {o}, safe and sound.",
    ),
    (
        '"You found it!" shouted {N}, and hugged {F}.',
        '"Thank you, {F}," said {N}. "Without you I would have given up."',
        "{N} danced for joy, and {F} danced too.",
    ),
    ("",),
    ENDING,
)

FOUND: tuple[Slot, ...] = (
    OPENING,
    FINDS_OBJECT,
    (
        '"What a fine {o}," said {N}. "Somebody must miss it."',
        "{N} wanted to keep it, but {he} knew that it belonged to somebody else.",
        '"Who could have lost {ao}?" {N} wondered.',
    ),
    ("",),
    (
        "So {he} carried the {o} from door to door and asked everybody. Nobody knew whose it was.",
        "{He} asked the baker, the postman and the old miller, but they only shook their heads.",
        '{He} put up a note that said: "Found: {ao}." All day long nobody came.',
    ),
    (
        "{N} was tired, but {he} did not give up.",
        "It began to get dark, and still {he} went on.",
        '"One more door," {he} said, "and then I will rest."',
    ),
    ("",),
    (
        "In the last house lived {fa} named {F}, who was very sad.",
        "Then {he} heard somebody crying. It was {fa} named {F}.",
        "At the end of the road sat {fa} called {F}, with {fhis} head in {fhis} hands.",
    ),
    (
        '"I have lost my {o}," said {F}. "My mother gave it to me."',
        '"My {o} is gone," said {F}, "and I cannot sleep without it."',
        '"The wind took my {o}," said {F}. "I have looked for it for three days."',
    ),
    (
        '"Is it this one?" asked {N}, and held it out. {F} jumped for joy.',
        "{N} smiled and put the {o} into {fhis} hands. {F} could hardly believe it.",
        '"Then today is your lucky day," said {N}, and gave it back.',
    ),
    (
        '"You could have kept it," said {F}. "You have an honest heart."',
        '"How can I thank you?" asked {F}. "Be my friend," said {N}.',
        "To say thank you, {F} invited {N} for {treat}.",
    ),
    ("",),
    ENDING,
)

BROKEN: tuple[Slot, ...] = (
    OPENING,
    WITH_OBJECT,
    WITH_FRIEND,
    ("",),
    (
        "One {weather} {time}, {N} stumbled and the {o} fell to the ground. Crack! It was broken.",
        "But one {weather} {time}, the {o} slipped out of {his} hands and broke in two.",
        "Then, on a {weather} {time}, there was a loud crack, and the {o} was broken.",
    ),
    (
        "{N} tried to mend it with glue, but it fell apart again.",
        "{He} tried string, and {he} tried mud, but nothing would hold.",
        "{He} worked all night to repair it, but it only got worse.",
    ),
    (
        '"It is no use," sighed {N}. "I am not clever enough."',
        '"Now it will never be whole again," said {N} sadly.',
        '"I give up," said {N}, and sat down on the floor.',
    ),
    ("",),
    (
        "{F} heard about it and came at once with a box of tools.",
        'In the morning, {F} knocked at the door. "May I have a look?" {fhe} asked.',
        "{F} looked at the pieces for a long time. Then {fhe} began to smile.",
    ),
    (
        '"You hold this end, and I will hold the other," said {F}.',
        '"One pair of hands is too few for this," said {F}. "But we have two!"',
        '"We need a little patience," said {F}, "and a little wax."',
    ),
    (
        "Together they worked slowly and carefully, piece by piece.",
        "{N} held the pieces, {F} tied the knots, and they sang while they worked.",
        "They tried once, and they tried twice. The third time it held!",
    ),
    (
        "When they were done, the {o} was even more beautiful than before.",
        "By sunset the {o} was as good as new.",
        "You could still see a thin line where it was broken, and {N} liked it best of all.",
    ),
    ("",),
    ENDING,
)

SHARED: tuple[Slot, ...] = (
    OPENING,
    WITH_FRIEND,
    ("",),
    (
        "One {weather} {time}, they found {aao} {spot}.",
        "On a {weather} {time}, both of them saw {aao} {spot} at the same moment.",
        "One {weather} {time}, while they were playing {at}, they found {aao}.",
    ),
    (
        '"It is mine!" said {N}. "No, it is mine!" said {F}.',
        '"I saw it first!" cried {N}. "But I was faster!" cried {F}.',
        "Both of them wanted it, and soon they were shouting.",
    ),
    (
        "They pulled and pulled until the {o} flew into the air and landed in the mud.",
        "{N} pulled to the left, {F} pulled to the right, and both fell over.",
        "{N} ran home without a word, and {F} was left alone with the {o}.",
    ),
    ("",),
    (
        "For a while nobody spoke. It was very quiet without a friend.",
        "That night neither of them could sleep.",
        "A long, sad hour went by. It was not a happy day at all.",
    ),
    (
        '"I am sorry," said {N} at last. "What good is {ao} without you?"',
        '"You may have it," said {N}. "I would rather have my friend."',
        'Then {N} said softly, "I was unkind. Please forgive me."',
    ),
    (
        '"I am sorry too," said {F}. "Let us take turns. You have it today, and I have it tomorrow."',
        '{F} smiled. "It can belong to both of us," {fhe} said.',
        '"Let us share it," said {F}, and they shook hands.',
    ),
    (
        "And so they did. With two, the {o} was twice as much fun.",
        "They carried the {o} home together, one on each side.",
        "Soon they were laughing again, and the {o} stood between them.",
    ),
    ("",),
    ENDING,
)

GIFT: tuple[Slot, ...] = (
    OPENING,
    WITH_FRIEND,
    ("",),
    (
        "{F} had a birthday, and {N} wanted to bring {fhim} {aao}.",
        'One {weather} {time}, {N} heard that {F} was ill. "I will bring {fhim} my {o}," {he} said.',
        "Winter was near, and {N} wanted to give {F} {aao}.",
    ),
    (
        "{He} wrapped it in a cloth and set out {to}.",
        "So {he} put the {o} on {his} back and walked {to}.",
        "{He} packed the {o} carefully and left before sunrise.",
    ),
    (
        "But a river had flooded the path, and there was no bridge.",
        "But a tree had fallen across the road, and {N} could not climb over it.",
        "But soon a storm came up, and {he} could not see the way.",
    ),
    ("",),
    (
        "{N} tried to go left, and {he} tried to go right, but there was no way through.",
        '"I will not turn back," said {N}. {He} pushed and pulled with all {his} might, but it was no use.',
        "{He} waited and waited, but it did not get any better.",
    ),
    (
        'Then a family of beavers came along. "We can help," they said, and set to work.',
        'Then a kind old farmer came by with a strong horse. "Hold on tight!" he called.',
        'Then a flock of geese called down from the sky, "Follow us! We know a way!"',
    ),
    (
        "In a short time the way was open, and {N} thanked them a hundred times.",
        "Soon {N} was safe on the other side, and the {o} was not even wet.",
        "And so {N} came through, tired and muddy, but with the {o} still in {his} arms.",
    ),
    (
        'When {F} opened the door and saw the {o}, {fhis} eyes shone. "You came all this way for me?"',
        '"For me?" asked {F}. {Fhe} had never had {ao} before.',
        '{F} laughed and cried at the same time. "It is the best present in the world," {fhe} said.',
    ),
    ("",),
    ENDING,
)

NOISE: tuple[Slot, ...] = (
    OPENING,
    WITH_OBJECT,
    ("",),
    (
        "One {weather} night, {N} heard a strange noise. Tap, tap, tap!",
        "Every night there was a strange sound {at}. Whoo, whoo, it went.",
        "One {weather} night, something scratched at the window.",
    ),
    (
        '{His} heart beat fast. "Is it a monster?" {he} whispered.',
        "{N} pulled the blanket over {his} head, but the noise did not stop.",
        '"I am not afraid," said {N}, but {his} knees were shaking.',
    ),
    (
        "At last {he} took the {o}, opened the door and went outside.",
        "Then {he} held the {o} tightly, counted to three and stepped into the dark.",
        '"With my {o} I can do it," {he} said, and crept out on tiptoe.',
    ),
    ("",),
    (
        (
            "Step by step {he} came closer to the noise. "
            "And who sat there, {spot}? It was {fa} named {F}, cold and alone."
        ),
        "The noise came from behind the shed. There sat no monster at all, but {fa} called {F}.",
        "And what did {he} see? It was only {fa} named {F}, who could not find the way home.",
    ),
    (
        '"Please do not be angry," said {F}. "I was afraid, and I wanted to call somebody."',
        '"I am sorry for the noise," said {F}. "I thought that you were the monster!"',
        '"I only wanted to look at your {o}," said {F}. "It is so beautiful."',
    ),
    (
        "Then both of them laughed, and {N} made {treat} for two.",
        '{N} laughed out loud. "Come in," {he} said, "there is {treat} for you."',
        '"Then we were both afraid of each other," said {N}, and invited {F} for {treat}.',
    ),
    (
        "They put the {o} on the table and told stories until the morning.",
        "{F} was allowed to hold the {o} until {fhe} fell asleep.",
        "In the morning {N} showed {F} how to use the {o}.",
    ),
    ("",),
    ENDING,
)

RESCUES: dict[str, tuple[Slot, ...]] = {
    use: (
        OPENING,
        WITH_OBJECT,
        WITH_FRIEND,
        ("",),
        tuple(f"One {{weather}} {{time}}, bad news came. {text}" for text in trouble),
        (
            '"We must help!" said {N}, but nobody knew how.',
            "{N} called for help as loudly as {he} could, but nobody came.",
            "First {N} tried to do it alone with {his} bare hands, but it did not work.",
        ),
        ("",),
        idea,
        deed,
        (
            '"You saved me!" said {F}. "How clever you are!"',
            '"Thank you, {N}," said {F}. "I will never forget this day."',
            "{F} hugged {N} and did not let go for a long time.",
        ),
        ("",),
        ENDING,
    )
    for use, (trouble, idea, deed) in HELPS.items()
}

PLOTS: dict[str, tuple[Slot, ...]] = {
    "lost": LOST,
    "found": FOUND,
    "broken": BROKEN,
    "shared": SHARED,
    "gift": GIFT,
    "noise": NOISE,
}
FITTING = {
    "food": ("shared", "gift", "lost"),
    "ride": ("broken",),
    "open": ("found", "lost", "noise", "gift"),
    "light": ("noise", "lost", "found", "broken", "gift"),
    "warm": ("gift", "lost", "shared", "found"),
    "cover": ("found", "gift", "shared", "lost"),
    "reach": ("lost", "found", "broken", "gift"),
    "guide": ("found", "gift", "lost", "shared", "noise"),
    "sound": ("broken", "lost", "gift", "found", "noise"),
}
"""Which plots besides its own rescue an object of that use can have; all plots when it is not named here."""
