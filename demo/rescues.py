"""For each use of an object: what goes wrong, how the hero thinks of the object, and how it helps. Data only.

The placeholders are those of ``plots``.
"""

Slot = tuple[str, ...]

HELPS: dict[str, tuple[Slot, Slot, Slot]] = {
    "light": (
        (
            "{F} was lost in the dark {at}, and nobody could see {fhim}.",
            "{F} had fallen asleep {at}, and now it was too dark to find the way home.",
        ),
        (
            'Then {he} thought of the {o}. "If I hold it high, {F} will see it!"',
            '"The {o}!" said {N}. "It can shine in the dark."',
        ),
        (
            (
                "{N} climbed up and held the {o} as high as {he} could. "
                "It shone like a small moon, and soon {F} came running towards the light."
            ),
            'The {o} shone over the whole land. "I see you!" called {F}, and followed the light to {N}.',
        ),
    ),
    "guide": (
        (
            "{F} had not come home for two days, and nobody knew the way.",
            "{F} wanted to go home, but all the paths looked the same.",
        ),
        (
            "Then {N} had an idea. {He} looked closely at the {o}.",
            '"Perhaps my {o} can tell us the way," said {N}.',
        ),
        (
            (
                "And indeed, it showed a secret path {to}. "
                "{N} followed it step by step, and at the end of it {he} found {F}."
            ),
            (
                "The {o} told {him} where to go: past the white stone and over the bridge. "
                "There {he} found {F}, safe and sound."
            ),
        ),
    ),
    "sound": (
        (
            "{F} was lost in thick fog {at}, and nobody could see {fhim}.",
            "{F} had gone out in a small boat, and now the fog was as thick as milk.",
        ),
        (
            '"{F} cannot see us," said {N}, "but perhaps {fhe} can hear us!" And {he} took the {o}.',
            "Then {N} remembered the {o}. It was louder than any voice.",
        ),
        (
            "{N} played the {o} again and again. {F} heard it, followed the sound, and came out of the fog.",
            'The sound of the {o} went far over the land. "I am coming!" called {F}, and the music led {fhim} home.',
        ),
    ),
    "open": (
        (
            "{F} was trapped behind a heavy old door and could not get out.",
            "A big stone had rolled in front of the cave, and {F} was inside.",
        ),
        (
            'Then {N} looked at the {o}. "Could it be?" {he} whispered.',
            '"My {o} can do more than it seems," said {N}.',
        ),
        (
            "{N} used the {o} with all {his} strength. There was a click and a crack, and {F} was free.",
            (
                "{He} tried it once, {he} tried it twice, and the third time the way was open. "
                "Out came {F}, covered in dust."
            ),
        ),
    ),
    "ride": (
        (
            "{F} was stuck on the other side of the water and could not swim.",
            "{F} had to be home by sunset, but it was much too far to walk.",
        ),
        (
            '"Get ready!" called {N}. "We will take the {o}!"',
            "Then {N} thought of the {o}. It was just big enough for two.",
        ),
        (
            (
                "Off they went in the wind with the {o}, faster and faster, and {F} held on tight. "
                "They were home just in time."
            ),
            "{N} brought the {o}, {F} climbed on, and together they went all the way home without a stop.",
        ),
    ),
    "reach": (
        (
            "{F} had fallen into a deep hole and could not get out.",
            "{F} sat high up in a tree and did not dare to climb down.",
        ),
        ('"Wait!" said {N}. "I have the {o}!"', "Then {N} remembered the {o} and ran home to fetch it."),
        (
            "{N} let {F} hold on to the {o} and pulled. One, two, three, and {F} was safe!",
            "{He} tied the {o} to a tree, and {F} held on. Little by little {fhe} came back to the ground.",
        ),
    ),
    "warm": (
        (
            "{F} sat {at} and shivered, for {fhe} was wet and cold.",
            "{F} had fallen into the cold water, and now {fhis} teeth were chattering.",
        ),
        ('"You need my {o} more than I do," said {N}.', "{N} did not think for long and fetched the {o}."),
        (
            "With the {o}, {F} was soon warm again from head to toe, and the colour came back to {fhis} cheeks.",
            'Slowly the {o} made {fhim} warm, and {F} stopped shivering. "That is better," {fhe} said.',
        ),
    ),
    "food": (
        (
            "{F} had eaten nothing all day and was too weak to walk home.",
            "{F} sat {at} with an empty stomach and an empty bag.",
        ),
        (
            "{N} was hungry too, but {he} looked at the {o} and then at {F}.",
            '"I have only one {o}," said {N}, "but it is big enough for two."',
        ),
        (
            "{He} gave half of it to {F}, and it had never tasted so good. Soon {F} was strong enough to walk again.",
            "{N} cut it right down the middle. {F} ate every crumb, and then {fhe} could laugh again.",
        ),
    ),
    "cover": (
        (
            "{F} was caught in a terrible rain {at} and had no roof.",
            "Big drops fell from the sky, and {F} was afraid of the thunder.",
        ),
        (
            '"Come here!" called {N}. "There is room for two under my {o}!"',
            "{N} thought quickly and ran to {F} with the {o}.",
        ),
        (
            "Under the {o} they stayed dry and told each other stories until the sun came back.",
            "They hid under the {o}, close together, and counted the thunder until it was far away.",
        ),
    ),
    "joy": (
        ("{F} was so sad that {fhe} had not smiled for a week.", "{F} was ill in bed and felt very lonely."),
        (
            '"Look what I have brought," said {N}, and took out the {o}.',
            "Then {N} had an idea. {He} put the {o} next to {F}.",
        ),
        (
            (
                "When {F} saw the {o}, {fhis} eyes grew wide. "
                "First {fhe} smiled a little, and then {fhe} laughed out loud."
            ),
            (
                "{F} held the {o} in the sunlight and turned it round and round. "
                '"It is wonderful," {fhe} said, and {fhis} sadness was gone.'
            ),
        ),
    ),
}
