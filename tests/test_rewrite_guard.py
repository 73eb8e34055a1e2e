"""The guard of rewritten captions: good ones pass, and whatever changes a fact is refused with its reason."""

from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sarlang_sft.errors import InputError
from sarlang_sft.language.things import Thing, name_things
from sarlang_sft.language.wording import CELLS, RELATIONS, Wording, content_problems, read_content, read_wording
from sarlang_sft.rewriting.guard import fault_of, read_caption
from sarlang_sft.rewriting.reading import UnreadError
from sarlang_sft.rewriting.words import Lexicon, make_lexicon

EN = read_wording("en")
SARDET = name_things(["ship", "aircraft", "car", "tank", "bridge", "harbor"], EN)
MSTAR = name_things(["2S1", "BMP2", "BRDM_2", "T62", "T72", "ZSU_23_4"], EN)
ZH = read_wording(str(Path(__file__).with_name("wording_zh.yaml")))
LEXICONS = {
    "sardet": make_lexicon(SARDET.values(), EN),
    "mstar": make_lexicon(MSTAR.values(), EN),
    "zh": make_lexicon(name_things(["ship", "bridge", "aircraft"], ZH).values(), ZH),
}

GENERAL = "A SAR image of ships, a bridge and aircraft."
COMPLEX = "This radar scene contains 5 ships, 1 bridge and 12 cars."
ABSOLUTE = "A SAR image of 5 ships in the upper left, 1 bridge in the lower center and 3 ships in the center right."
RELATIVE = "In this SAR image, 5 ships located in the upper left are positioned above the 3 bridges."
ASIDE = "A SAR image with 2 tanks in the lower right, to the right of the harbor."
CHIP = "A SAR image of 1 T72, which is a battle tank."
ZH_COMPLEX = "这幅雷达图像中有5个船、1个桥和2个飞机。"
ZH_RELATIVE = "位于左上角的5个船在3个桥的上方。"

GOOD = [
    ("sardet", GENERAL, "Ships, a bridge and aircraft can be seen in this radar image."),
    ("sardet", GENERAL, "The radar image displays aircraft, ships and one bridge."),
    ("sardet", GENERAL, "A SAR acquisition showing vessels as well as a bridge, along with airplanes."),
    ("sardet", GENERAL, "In this scene, one can see a single bridge, boats, and planes."),
    ("sardet", COMPLEX, "Five ships, one bridge and twelve cars are captured in this radar view."),
    ("sardet", COMPLEX, "This SAR picture depicts 12 cars, 5 vessels and a bridge."),
    ("sardet", COMPLEX, "The radar has imaged a dozen automobiles, a bridge, and five boats."),
    ("sardet", COMPLEX, "There are 5 ships and there are 12 cars and there is a bridge."),
    ("sardet", COMPLEX, "Visible to the radar: a single bridge; 5 ships; 12 cars."),
    ("sardet", ABSOLUTE,
     "There are 5 ships in the top left, one bridge in the bottom center, and 3 ships in the right center."),
    ("sardet", ABSOLUTE,
     "In the upper left are 5 ships, in the middle right 3 ships, and in the lower middle a bridge."),
    ("sardet", ABSOLUTE,
     "The top-left corner holds five vessels, the lower center one bridge, the center right three vessels."),
    ("sardet", ABSOLUTE,
     "5 ships lie in the upper left part while 1 bridge lies in the bottom center and 3 boats lie center right."),
    ("sardet", RELATIVE, "5 ships in the upper left lie above the 3 bridges."),
    ("sardet", RELATIVE, "Five vessels, seen in the top left corner, are situated above three bridges."),
    ("sardet", RELATIVE, "The 3 bridges lie below the 5 ships in the upper left."),
    ("sardet", RELATIVE, "Three bridges are found below 5 ships located in the upper-left."),
    ("sardet", RELATIVE, "In the upper left, five ships are positioned above the three bridges."),
    ("sardet", RELATIVE, "Above the 3 bridges, 5 ships can be seen in the upper left."),
    ("sardet", RELATIVE, "Below the 5 ships in the top left lie the 3 bridges."),
    ("sardet", RELATIVE, "The radar shows 5 ships in the upper left. They are above 3 bridges."),
    ("sardet", ASIDE, "Two tanks in the lower right are located to the right of the harbour."),
    ("sardet", ASIDE, "A harbor lies to the left of 2 tanks in the bottom right."),
    ("sardet", ASIDE, "The lower right corner shows a pair of tanks right of a port."),
    ("mstar", CHIP, "A T72 battle tank, imaged by radar."),
    ("mstar", CHIP, "This SAR chip shows a single battle tank of the type T72."),
    ("mstar", CHIP, "Radar view of one T72, a type of battle tank."),
    ("mstar", CHIP, "Radar has imaged a battle tank named T72."),
    ("mstar", "A SAR image of a ZSU_23_4.", "A ZSU-23-4 is shown in this radar image."),
    ("mstar", "A SAR image of a T62.", "One T62, as a synthetic aperture radar sees it."),
    ("zh", ZH_COMPLEX, "雷达图像显示了一座桥、五艘船只以及两架飞机。"),
    ("zh", ZH_RELATIVE, "位于左上方的五艘船在三座桥的上面。"),
    ("zh", "在雷达图像中，5个船位于左上角、1个桥位于中心。", "在图像中，五艘船舶位于左上方，还有一座桥位于正中央。"),
]  # fmt: skip
BAD = [
    ("sardet", COMPLEX, "This radar scene contains 5 ships, 1 bridge and 12 cars, seen above.", "a relation is added"),
    ("sardet", COMPLEX, "Six ships, one bridge and 12 cars are visible.", "another number"),
    ("sardet", COMPLEX, "12 ships, 1 bridge and 5 cars are visible.", "a number of another class"),
    ("sardet", COMPLEX, "Ships, 1 bridge and 12 cars are visible.", "a number is lost"),
    ("sardet", COMPLEX, "5 ships, bridges and 12 cars are visible.", "a number is lost"),
    ("sardet", COMPLEX, "5 ships and 12 cars are visible.", "a class is lost"),
    ("sardet", COMPLEX, "5 ships, 1 bridge, 12 cars and a harbor are visible.", "a class is added"),
    ("sardet", COMPLEX, "5 ships, 1 harbor and 12 cars are visible.", "another class"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars, with 5 ships.", "a class is added"),
    ("sardet", COMPLEX, "About 5 ships, 1 bridge and 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "At least 5 ships, 1 bridge and 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "More than 5 ships, 1 bridge and 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "~5 ships, 1 bridge and 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "5+ ships, 1 bridge and 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "5-6 ships, 1 bridge and 12 cars are visible.", "a number without a class"),
    ("sardet", COMPLEX, "5 large ships, 1 bridge and 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "5 visible ships, 1 bridge and 12 cars are visible.", "a number without a class"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 rusty cars are visible.", "a word that is not known"),
    ("sardet", ASIDE, "Two storage tanks in the lower right, to the right of the port.", "a word that is not known"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars have been removed.", "a word that is not known"),
    ("sardet", COMPLEX, "5 ships, 1 bridge, 12 cars and an object are visible.", "a word that is not known"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars, with a lighthouse.", "a word that is not known"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars hidden by clouds.", "a word that is not known"),
    ("sardet", COMPLEX, "Once there have been 5 ships, 1 bridge and 12 cars.", "a word that is not known"),
    ("sardet", COMPLEX, "The ships (5), the bridge and the cars (12) are visible.", "a number without a class"),
    ("sardet", COMPLEX, "1,005 ships, 1 bridge and 12 cars are visible.", "a number without a class"),
    ("sardet", COMPLEX, "５ ships, 1 bridge and 12 cars are visible.", "a number that is not understood"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and a 12th car are visible.", "a number that is not understood"),
    ("sardet", COMPLEX, "Twenty-five ships, 1 bridge and 12 cars are visible.", "another number"),
    ("sardet", COMPLEX, "5 ship, 1 bridge and 12 cars are visible.", "a number that does not fit its class"),
    ("sardet", COMPLEX, "No 5 ships, 1 bridge and 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars aren’t visible.", "a word that is refused"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and possibly 12 cars are visible.", "a word that is refused"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars appear to be visible.", "a word that is refused"),
    ("sardet", COMPLEX, "5 ships lie under 1 bridge with 12 cars.", "a word that is refused"),
    ("sardet", COMPLEX, "5 ships hold 1 bridge and 12 cars.", "classes that are not just listed"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars in the upper left.", "a place is added"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars at the top.", "a place is blurred"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars by a river.", "a word that is refused"),
    ("sardet", COMPLEX, "A group of 5 ships, 1 bridge and 12 cars.", "a word that is refused"),
    ("sardet", COMPLEX, COMPLEX.upper(), "the same as the caption"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars are visible", "it does not end as the caption does"),
    ("sardet", COMPLEX, "5 ships, 1 bridge\nand 12 cars are visible.", "more than one line"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars <|im_end|>.", "a special token"),
    ("sardet", COMPLEX, "5 ships <box:0>, 1 bridge and 12 cars.", "a special token"),
    ("sardet", COMPLEX, "5 ships, 1 brid\u200bge and 12 cars.", "a control character"),
    ("sardet", COMPLEX, "5 ships, 1 bridge and 12 cars" + " are visible" * 30 + ".", "too long"),
    ("sardet", COMPLEX, " ... ", "no words"),
    ("sardet", GENERAL, "A ship, a bridge and aircraft are visible.", "a number is added"),
    ("sardet", GENERAL, "Ship, a bridge and aircraft are visible.", "another number"),
    ("sardet", GENERAL, "4 ships, a bridge and aircraft are visible.", "a number is added"),
    ("sardet", GENERAL, "Ships, bridges and aircraft are visible.", "a number is lost"),
    ("sardet", GENERAL, "Several ships, a bridge and aircraft are visible.", "a word that is refused"),
    ("sardet", GENERAL, "Ships, a bridge and an aircraft are visible.", "a number is added"),
    ("sardet", GENERAL, "Ships at a bridge and aircraft are visible.", "classes that are not just listed"),
    ("sardet", GENERAL, "Ships, a bridge and aircraft carriers are visible.", "a word that is refused"),
    ("sardet", GENERAL, "Shipyards, a bridge and aircraft are visible.", "a word that is not known"),
    ("sardet", ABSOLUTE, "3 ships in the upper left, 1 bridge in the lower center and 5 ships in the center right.",
     "a place of another class"),
    ("sardet", ABSOLUTE, "5 ships in the lower center, 1 bridge in the upper left and 3 ships in the center right.",
     "a place of another class"),
    ("sardet", ABSOLUTE, "5 ships in the upper right, 1 bridge in the lower center and 3 ships in the center right.",
     "another place"),
    ("sardet", ABSOLUTE, "5 ships on the left, 1 bridge in the lower center and 3 ships in the center right.",
     "a place is blurred"),
    ("sardet", ABSOLUTE, "5 ships in the upper part, 1 bridge in the lower center and 3 ships in the center right.",
     "a word that is refused"),
    ("sardet", ABSOLUTE, "5 ships, 1 bridge in the lower center and 3 ships in the center right.", "a place is lost"),
    ("sardet", ABSOLUTE, "5 ships, 1 bridge and 3 ships lie in the upper left, lower center and center right.",
     "places whose classes are not sure"),
    ("sardet", ABSOLUTE,
     "We see 5 ships, the upper left has 1 bridge, the lower center holds 3 ships, the center right here.",
     "places whose classes are not sure"),
    ("sardet", ABSOLUTE, "8 ships in the upper left and 1 bridge in the lower center.", "a class is lost"),
    ("sardet", "A SAR image of 5 ships in the upper right.", "5 ships are in the center right.", "another place"),
    ("sardet", "A SAR image of 5 ships in the upper right.", "5 ships are to the right.", "a place is blurred"),
    ("sardet", "A SAR image of 5 ships in the center right.", "5 ships are in the top right.", "another place"),
    ("sardet", RELATIVE, "3 ships in the upper left are above the 5 bridges.", "a number of another class"),
    ("sardet", RELATIVE, "5 bridges in the upper left are above the 3 ships.", "a number of another class"),
    ("sardet", RELATIVE, "3 bridges in the upper left are above the 5 ships.", "a place of another class"),
    ("sardet", RELATIVE, "5 ships in the upper left are below the 3 bridges.", "another relation"),
    ("sardet", RELATIVE, "5 ships in the upper left are to the left of the 3 bridges.", "another relation"),
    ("sardet", RELATIVE, "The 3 bridges are above the 5 ships in the upper left.", "another relation"),
    ("sardet", RELATIVE, "5 ships are above the 3 bridges in the upper left.", "a place of another class"),
    ("sardet", RELATIVE, "The 3 bridges are below the 5 ships, in the upper left.",
     "a relation whose sides are not sure"),
    ("sardet", RELATIVE, "5 ships in the upper left, above, and the 3 bridges.",
     "a relation whose sides are not sure"),
    ("sardet", RELATIVE, "5 ships and the 3 bridges above in the upper left.", "a relation whose sides are not sure"),
    ("sardet", RELATIVE, "Above the 3 bridges and the 5 ships lies the upper left.",
     "a relation whose sides are not sure"),
    ("sardet", RELATIVE, "5 ships in the upper left are not above the 3 bridges.", "a word that is refused"),
    ("sardet", RELATIVE, "5 ships in the upper left, near the 3 bridges.", "a word that is refused"),
    ("sardet", RELATIVE, "5 ships in the upper left and 3 bridges.", "a relation is lost"),
    ("sardet", RELATIVE, "5 ships in the upper left lie above and left of the 3 bridges.", "a relation is added"),
    ("sardet", RELATIVE, "5 ships in the upper left are above the bridges.", "a number is lost"),
    ("sardet", RELATIVE, "5 ships lie above the 3 bridges.", "a place is lost"),
    ("sardet", ASIDE, "2 tanks in the lower right are to the left of the harbor.", "another relation"),
    ("sardet", ASIDE, "2 tanks in the lower right, and a harbor.", "a relation is lost"),
    ("mstar", CHIP, "A T72, imaged by radar.", "a class is lost"),
    ("mstar", CHIP, "A T62 battle tank, imaged by radar.", "another class"),
    ("mstar", CHIP, "A T72 and a battle tank, imaged by radar.", "another number"),
    ("mstar", CHIP, "2 T72s, a battle tank, imaged by radar.", "a class and its kind have different numbers"),
    ("mstar", "A SAR image of a T62.", "A T62 truck.", "a word that is refused"),
    ("mstar", "A SAR image of a T62.", "A T62 battle tank.", "a class is added"),
    ("mstar", "A SAR image of a T62.", "A T-62 in a radar image.", "a word that is not known"),
    ("zh", ZH_COMPLEX, "这幅雷达图像中有五艘船、一座桥和三架飞机。", "another number"),
    ("zh", ZH_COMPLEX, "这幅雷达图像中大约有五艘船、一座桥和两架飞机。", "a word that is refused"),
    ("zh", ZH_COMPLEX, "这幅雷达图像中有五艘船和一座桥。", "a class is lost"),
    ("zh", ZH_COMPLEX, "这幅雷达图像中有五艘船、一座桥、两架飞机和港口。", "a word that is refused"),
    ("zh", ZH_COMPLEX, "这幅雷达图像中有十五艘船、一座桥和两架飞机。", "a number without a class"),
    ("zh", ZH_RELATIVE, "位于左上角的3个桥在5个船的上方。", "a place of another class"),
    ("zh", ZH_RELATIVE, "位于左上角的五艘船在三座桥的下面。", "another relation"),
    ("zh", ZH_RELATIVE, "五艘船的上方有三座桥位于左上角。", "a relation whose sides are not sure"),
]  # fmt: skip

SHIP = "A SAR image of a ship."
CARS = "A SAR image of 5 cars in the upper right."
SHIPS = "In this SAR image, 5 ships located in the upper right are positioned above the 3 bridges."
VIEW = "This is a SAR view that includes 1 ship, 14 tanks and 3 bridges."
PAIRS = "A SAR image of 5 cars in the upper right and 2 ships in the center."

# Ordinary wordings.
SAME = {
    SHIP: [
        "A ship is visible in this SAR image.",
        "A SAR picture showcasing a ship.",
        "A ship pictured by radar.",
        "A SAR image taken by radar shows a ship.",
        "This SAR scene encompasses a ship.",
        "A ship can be seen in this SAR image.",
        "One can see a ship in this SAR image.",
        "This radar image contains a ship.",
        "The image depicts a ship.",
        "A vessel is shown in the synthetic aperture radar image.",
        "There is a ship in this SAR image.",
        "A ship, as captured by SAR.",
        "In this SAR image, there is a ship.",
        "A radar image featuring a single ship.",
        "SAR imagery reveals a ship.",
        "A ship captured in a SAR image.",
        "A synthetic aperture radar image of one ship.",
        "A ship is captured by synthetic aperture radar.",
        "This image, taken by SAR, shows a ship.",
        "Here a ship can be seen in a SAR image.",
        "The SAR image reveals the presence of a ship.",
        "A ship, as captured by SAR.",
        "This image, taken by SAR, shows a ship.",
        "Here a ship can be seen in a SAR image.",
    ],
    CARS: [
        "A SAR image of a total of 5 cars in the upper right.",
        "A total of 5 cars can be seen in the upper right.",
        "5 cars are located in the upper right of the SAR image.",
        "In the upper right of this SAR image, there are 5 cars.",
        "The upper right corner of this image shows five cars.",
        "Five cars are in the upper right part of the image.",
        "This SAR image shows five cars in the upper right corner.",
        "In this SAR image, five cars can be seen in the upper right.",
        "5 cars occupy the upper right corner of the SAR image.",
        "There are 5 cars located in the top right of the image.",
        "The upper right of the scene contains 5 cars.",
        "Five cars are visible in the top right corner of this radar image.",
        "5 cars can be found in the upper right of this radar scene.",
        "Located in the upper right are 5 cars.",
        "5 cars are captured in the upper right of this SAR view.",
        "The SAR image shows that 5 cars are in the upper right.",
        "The radar image reveals five cars situated in the upper right portion of the scene.",
        "This radar image captures five cars positioned at the top right.",
    ],
    SHIPS: [
        "5 ships in the upper right can be seen above the 3 bridges.",
        "5 ships are situated in the top right corner, above the 3 bridges.",
        "Five ships in the upper right corner of the image lie above three bridges.",
        "In the upper right of this SAR image, 5 ships are located above 3 bridges.",
        "This SAR image shows 5 ships in the upper right, positioned above the 3 bridges.",
        "The 3 bridges are located below the 5 ships in the upper right.",
        "There are 5 ships in the upper right, above the 3 bridges.",
        "5 vessels located in the upper right of the scene are found above the three bridges.",
    ],
    VIEW: [
        "This SAR image contains one ship accompanied by 14 tanks and 3 bridges.",
        "The scene shows 14 tanks, 3 bridges, and a ship.",
        "One ship, fourteen tanks, and three bridges are visible in this SAR view.",
        "A total of 14 tanks, 3 bridges and a ship are seen in this radar image.",
        "A ship, along with 14 tanks and 3 bridges, can be seen in this SAR image.",
        "This SAR view captures 1 ship, 14 tanks, as well as 3 bridges.",
    ],
    PAIRS: [
        "In the upper right there are 5 cars, and in the center there are 2 ships.",
        "The scene shows 5 cars in the upper right, with 2 ships in the center.",
        "The scene shows 5 cars in the upper right and 2 ships in the middle of the image.",
        "5 cars are located in the top right, while 2 ships are in the center.",
        "There are 5 cars in the upper right and there are 2 ships in the center.",
        "The upper right contains 5 cars, and the center holds 2 ships.",
        "5 cars occupy the upper right, and 2 ships lie in the center.",
        "In the upper right are five cars; in the center are two ships.",
        "There are 5 cars in the upper right, while there are 2 ships in the center.",
        "5 cars in the upper right, accompanied by 2 ships in the center.",
        "Five cars can be seen in the upper right corner and two ships in the center.",
    ],
}

# Words that are known, where they say something else: no mood, doubt, doer, question or second picture.
ASTRAY = {
    SHIP: [
        "This SAR image can contain a ship.",
        "A ship can be present in this SAR image.",
        "A location that can be a ship in a SAR image.",
        "A SAR image of a ship and a radar system.",
        "A SAR image of a ship with spots and a display.",
        "A SAR image of a ship with its radar.",
        "A radar view from a ship.",
        "A SAR image acquired by a ship.",
        "A ship records a SAR image.",
        "Find a ship in this SAR image.",
        "Can you see a ship in this SAR image.",
        "When there is a ship, a SAR image shows it.",
        "A ship has been in this scene.",
        "Is a ship in this SAR image.",
        "Are there a ship in this SAR image.",
        "The SAR image lacks a ship.",
        "The SAR image misses a ship.",
        "The SAR image hides a ship.",
        "The SAR image showed a ship.",
        "The SAR image will show a ship.",
        "A ship was seen in this SAR image.",
        "A ship sees a SAR image.",
        "A ship is a SAR image.",
        "A ship shows a radar.",
        "A ship contains a radar sensor.",
        "A radar is in a ship.",
        "A radar on a ship.",
        "The radar of a ship.",
        "The radar has a ship.",
        "A ship with a SAR system.",
        "A SAR image with a radar and a ship.",
        "A SAR image with data of a ship.",
        "A SAR image of a part of a ship.",
        "A SAR image of the content of a ship.",
        "The position of a ship in a SAR image.",
        "A SAR image of the region of a ship.",
        "Which ship is in this SAR image.",
        "There where a ship lies is a SAR image.",
        "A ship to be in this SAR image.",
        "A SAR image for a ship.",
        "A SAR image as a ship.",
        "A SAR image within a ship.",
        "A SAR image is within a ship.",
        "A SAR image is on a ship.",
        "A ship holds this SAR image.",
        "A SAR image is located in a ship.",
        "Imaging radar sits on a ship.",
        "Show a ship in this SAR image.",
        "Detect a ship in this SAR image.",
        "Locate a ship.",
        "A ship sits on the radar.",
        "Only a ship is in this SAR image.",
        "Another ship is in this SAR image.",
        "A ship exists in the radar.",
        "A ship made by radar.",
        "A SAR image made of a ship.",
        "A ship shown with a radar system.",
        "An image taken by the radar of a ship.",
        "A scan from the radar of a ship.",
        "A chip of a ship.",
        "A patch of a ship.",
        "A SAR image with a frame of a ship.",
        "A ship, is a SAR image.",
        "Not a ship but a SAR image.",
        "A ship using radar.",
        "A ship with radar.",
        "A ship, and a SAR image.",
        "What a SAR image shows is a ship.",
        "This SAR image had a ship.",
        "The ship is seen from a radar.",
        "A SAR image is shown by a ship.",
        "A SAR image shown to a ship.",
        "A SAR image of it and a ship.",
        "A ship in the part of the image.",
        "A ship, too.",
        "In a ship, one can see a SAR image.",
        "A view of a SAR image from a ship.",
        "A SAR image that a ship shows.",
        "A ship is visible to us.",
    ],
    CARS: [
        "The upper right of 5 cars is seen in the SAR image.",
        "A SAR image of 5 cars to the upper right corner.",
        "5 cars, seen from the upper right.",
        "A SAR image of the upper right of 5 cars.",
        "A SAR image of the upper right with 5 cars.",
        "5 cars hold the upper right of the SAR image.",
        "5 cars show the upper right.",
        "5 cars have the upper right.",
        "Both 5 cars lie in the upper right.",
        "Another 5 cars lie in the upper right.",
        "5 cars each lie in the upper right.",
        "5 of the cars lie in the upper right.",
        "The other 5 cars lie in the upper right.",
        "Are 5 cars in the upper right.",
        "5 cars were in the upper right.",
        "5 cars will lie in the upper right.",
        "5 cars of the upper right.",
        "5 cars near the upper right.",
        "5 cars as the upper right.",
        "5 cars in the upper right have been found.",
        "5 cars can lie in the upper right.",
        "See 5 cars in the upper right.",
        "Note 5 cars in the upper right.",
        "The upper right is in 5 cars.",
        "5 cars are the upper right.",
        "The upper right shows, by 5 cars, a SAR image.",
        "The upper right misses 5 cars.",
        "5 cars in the upper right of a radar system.",
        "5 cars in the upper right of the area.",
        "A total of 6 cars in the upper right.",
        "A total of cars in the upper right.",
        "In the upper right part of 5 cars.",
        "5 cars in a ship in the upper right.",
        "The upper right of this SAR image shows: find 5 cars.",
    ],
    SHIPS: [
        "In this SAR image, 5 ships in the upper right have above the 3 bridges.",
        "In this SAR image, 5 ships in the upper right hold above the 3 bridges.",
        "In this SAR image, 5 ships in the upper right find above the 3 bridges.",
        "In this SAR image, 5 ships in the upper right see above the 3 bridges.",
        "In this SAR image, 5 ships in the upper right show above the 3 bridges.",
        "In this SAR image, 5 ships in the upper right has above the 3 bridges.",
        "In this SAR image, 5 ships in the upper right contain above the 3 bridges.",
        "In this SAR image, 5 ships in the upper right above the other 3 bridges.",
        "In this SAR image, 5 ships in the upper right, seen above from the 3 bridges.",
        "In this SAR image, 5 ships in the upper right are seen by the 3 bridges above.",
        "In this SAR image, 5 ships in the upper right and above the 3 bridges.",
        "Above the 3 bridges holds 5 ships in the upper right.",
        "5 ships in the upper right are not above the 3 bridges.",
        "5 ships in the upper right can be above the 3 bridges.",
        "5 ships in the upper right were above the 3 bridges.",
        "5 ships from the upper right lie above the 3 bridges.",
        "5 ships in the upper right lie above both 3 bridges.",
        "5 ships in the upper right have the 3 bridges above.",
        "Are 5 ships in the upper right above the 3 bridges.",
        "Find 5 ships in the upper right above the 3 bridges.",
        "5 ships in the upper right in a SAR image above the 3 bridges.",
        "5 ships in the upper right, positioned by the 3 bridges above.",
        "Above the 3 bridges that 5 ships see in the upper right.",
        "Below 5 ships in the upper right hold the 3 bridges.",
    ],
    VIEW: [
        "1 ship. 14 tanks. 3 bridges.",
        "1 ship, 14 tanks and 3 bridges. A radar.",
        "There is 1 ship. There are 14 tanks and 3 bridges.",
        "1 ship with 14 tanks and 3 bridges.",
        "1 ship, 14 tanks and 3 bridges lack a SAR view.",
        "1 ship, 14 tanks and 3 bridges and a radar.",
    ],
    PAIRS: [
        "In the upper right there are 5 cars with 2 ships in the center.",
        "In the upper right there are 5 cars of the center with 2 ships.",
        "The scene shows 5 cars in the upper right of 2 ships in the center.",
        "The scene shows 5 cars in the upper right, seen from 2 ships in the center.",
        "5 cars in the upper right face 2 ships in the center.",
        "5 cars in the upper right are 2 ships in the center.",
        "5 cars in the upper right hold, with 2 ships in the center.",
        "5 cars and 2 ships in the upper right and in the center.",
        "The scene shows 2 cars in the upper right, with 5 ships in the center.",
    ],
}


@pytest.mark.parametrize(("lexicon", "caption", "rewrite"), GOOD)
def test_rewrites_that_say_the_same_pass(lexicon: str, caption: str, rewrite: str) -> None:
    assert fault_of(rewrite, read_caption(caption, LEXICONS[lexicon]), LEXICONS[lexicon]) is None


@pytest.mark.parametrize(("lexicon", "caption", "rewrite", "reason"), BAD)
def test_what_changes_a_fact_is_refused_with_its_reason(lexicon: str, caption: str, rewrite: str, reason: str) -> None:
    fault = fault_of(rewrite, read_caption(caption, LEXICONS[lexicon]), LEXICONS[lexicon])
    assert fault is not None and fault.reason == reason, fault


@pytest.mark.parametrize("caption", SAME)
def test_ordinary_wordings_pass(caption: str) -> None:
    lexicon = LEXICONS["sardet"]
    faults = {rewrite: fault_of(rewrite, read_caption(caption, lexicon), lexicon) for rewrite in SAME[caption]}
    assert not {rewrite: fault for rewrite, fault in faults.items() if fault is not None}


@pytest.mark.parametrize("caption", ASTRAY)
def test_known_words_are_refused_where_they_say_something_else(caption: str) -> None:
    lexicon = LEXICONS["sardet"]
    read = read_caption(caption, lexicon)
    assert not [rewrite for rewrite in ASTRAY[caption] if fault_of(rewrite, read, lexicon) is None]


def test_words_of_the_caption_and_of_its_wording_may_stand_anywhere() -> None:
    content = read_content("en")
    content["reading"]["known"] = [*content["reading"]["known"], "clearly"]
    lexicon = make_lexicon(SARDET.values(), replace(EN, content=content))
    read = read_caption("A hazy SAR image of 5 ships.", lexicon)
    assert fault_of("5 ships are clearly visible in a hazy SAR image.", read, lexicon) is None
    assert fault_of("5 ships are plainly visible in a hazy SAR image.", read, lexicon).detail == "plainly"
    assert fault_of("5 ships clearly see a hazy SAR image.", read, lexicon).detail == "see a sar image"


def test_a_rewrite_is_held_against_its_own_caption_alone() -> None:
    """The good ones of one caption are no rewrites of another, but where both say the same."""
    for lexicon, caption, rewrite in GOOD:
        for other in {one for name, one, _ in GOOD if name == lexicon} - {caption}:
            assert fault_of(rewrite, read_caption(other, LEXICONS[lexicon]), LEXICONS[lexicon]) is not None


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("A SAR image.", "no class of the set"),
        ("A SAR image of 5 ships near 3 bridges.", "classes that are not just listed"),
        ("A SAR image of 3 things.", "a number without a class"),
        ("5 ships in the upper left and upper right.", "places whose classes are not sure"),
    ],
)
def test_a_caption_that_is_not_read_for_sure_cannot_be_rewritten(caption: str, reason: str) -> None:
    with pytest.raises(UnreadError) as error:
        read_caption(caption, LEXICONS["sardet"])
    assert error.value.reason == reason


def test_a_word_of_two_classes_is_refused_and_a_class_wins_over_another_name() -> None:
    content = read_content("en")
    content["classes"] = {"frigate": {"also": ["vessel"]}, "barge": {"also": ["vessel", "tug"]}}
    wording = replace(EN, content=content, classes=content["classes"])
    lexicon = make_lexicon(name_things(["frigate", "barge", "tug"], wording).values(), wording)
    assert fault_of("2 vessels.", read_caption("2 frigates.", lexicon), lexicon).reason == "a word that is refused"
    assert fault_of("2 tugs.", read_caption("2 barges.", lexicon), lexicon).reason == "another class"


# Captions of the templates, changed and put into other templates.


@dataclass(frozen=True)
class Told:
    """What a caption tells: (class, number, cell) of its groups, and a relation."""

    family: str
    groups: tuple[tuple[str, int, str], ...]
    relation: str = ""


@st.composite
def told(draw: st.DrawFn) -> Told:
    family = draw(st.sampled_from(["general", "complex", "absolute_region", "relative_region"]))
    number = 2 if family == "relative_region" else draw(st.integers(1, 3))
    names = draw(st.permutations(sorted(SARDET)))[:number]
    groups = tuple((name, draw(st.integers(1, 99)), draw(st.sampled_from(CELLS))) for name in names)
    return Told(family, groups, draw(st.sampled_from(RELATIONS)))


def written(draw: st.DrawFn, facts: Told) -> str:
    """By a template of the family, in any order and spelling."""
    wording = EN

    def form(name: str, number: int, article: str = "") -> str:
        thing: Thing = SARDET[name]
        part = f"parts.{article}{'one' if number == 1 else 'many'}"
        return wording.parts[part].fill(thing.forms() | {"n": str(number)})

    def place(cell: str) -> str:
        return draw(st.sampled_from(wording.places[cell]))

    groups = draw(st.permutations(facts.groups)) if facts.family != "relative_region" else facts.groups
    templates = wording.sets[f"captions.{facts.family}"]
    if facts.family == "absolute_region" and len(groups) > 1:
        templates = [template for template in templates if "placed" in template.slots]
    template = draw(st.sampled_from(templates))
    name, number, cell = groups[0]
    other = groups[-1]
    values = {
        "kinds": wording.listing([form(name, number, "kind_") for name, number, _ in groups]),
        "groups": wording.listing([form(name, number) for name, number, _ in groups]),
        "placed": wording.listing(
            [
                wording.parts["parts.placed"].fill({"group": form(name, number), "place": place(cell)})
                for name, number, cell in groups
            ]
        ),
        "group": form(name, number),
        "place": place(cell),
        "relation": draw(st.sampled_from(wording.relations[facts.relation])),
        "the_group": form(other[0], other[1], "the_"),
    }
    text = template.fill(values, number == 1)
    return text[0].upper() + text[1:]


@st.composite
def corrupted(draw: st.DrawFn, facts: Told) -> Told:
    """One fact changed, of those that the family tells."""
    whats = {
        "general": ["number", "class", "drop", "add"],
        "complex": ["number", "class", "drop", "add", "swap numbers"],
        "absolute_region": ["number", "class", "drop", "add", "swap numbers", "place", "swap places"],
        "relative_region": ["number", "class", "swap numbers", "place", "relation", "turn"],
    }
    what = draw(st.sampled_from(whats[facts.family]))
    groups = list(facts.groups)
    at = draw(st.integers(0, len(groups) - 1))
    name, number, cell = groups[at]
    unused = sorted({*SARDET} - {one for one, _, _ in groups})
    if what == "number":
        other = draw(st.integers(1, 99).filter(lambda n: n != number))
        assume(facts.family != "general" or (other == 1) != (number == 1))
        groups[at] = (name, other, cell)
    elif what == "class":
        groups[at] = (draw(st.sampled_from(unused)), number, cell)
    elif what == "drop":
        assume(len(groups) > 1)
        del groups[at]
    elif what == "add":
        groups.append((draw(st.sampled_from(unused)), draw(st.integers(1, 99)), cell))
    elif what == "place":
        name, number, cell = groups[0]  # the one whose place is told in all families
        groups[0] = (name, number, draw(st.sampled_from(CELLS).filter(lambda one: one != cell)))
    elif what in ("swap numbers", "swap places"):
        assume(len(groups) > 1)
        (one, n, here), (other, m, there) = groups[0], groups[-1]
        assume(n != m if what == "swap numbers" else here != there)
        swapped = (
            ((one, m, here), (other, n, there)) if what == "swap numbers" else ((one, n, there), (other, m, here))
        )
        groups[0], groups[-1] = swapped
    elif what == "turn":
        groups = [(groups[1][0], groups[1][1], cell), groups[0]]
    relation = facts.relation
    if what == "relation":
        relation = draw(st.sampled_from(RELATIONS).filter(lambda one: one != facts.relation))
    return replace(facts, groups=tuple(groups), relation=relation)


@settings(max_examples=200, deadline=None)
@given(st.data(), told())
def test_the_same_facts_in_another_template_pass(data: st.DataObject, facts: Told) -> None:
    lexicon = LEXICONS["sardet"]
    fault = fault_of(written(data.draw, facts), read_caption(written(data.draw, facts), lexicon), lexicon)
    assert fault is None or fault.reason == "the same as the caption"


@settings(max_examples=400, deadline=None)
@given(st.data(), told())
def test_one_changed_fact_is_refused_in_whatever_template(data: st.DataObject, facts: Told) -> None:
    lexicon = LEXICONS["sardet"]
    wrong = data.draw(corrupted(facts))
    rewrite = written(data.draw, wrong)
    fault = fault_of(rewrite, read_caption(written(data.draw, facts), lexicon), lexicon)
    assert fault is not None and fault.reason != "the same as the caption", rewrite


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_text_makes_the_guard_fail(text: str) -> None:
    assert fault_of(text, read_caption(RELATIVE, LEXICONS["sardet"]), LEXICONS["sardet"]) is not None


def test_every_template_of_the_built_in_wording_is_read() -> None:
    for lexicon, things in (("sardet", SARDET), ("mstar", MSTAR)):
        for thing in things.values():
            for template in (*EN.sets["chips.general"], *EN.sets["chips.complex"]):
                if thing.kind is not None or {"kind", "a_kind"}.isdisjoint(template.slots):
                    facts = read_caption(template.fill(thing.forms()), LEXICONS[lexicon]).facts
                    assert [group.named.count for group in facts.groups] == ["1"]


def test_time_grows_with_the_length_alone() -> None:
    lexicon: Lexicon = LEXICONS["sardet"]
    caption = "A SAR image of " + ", ".join(["ships"] * 10_000) + "."
    begin = process_time()
    read = read_caption(caption, lexicon)
    assert fault_of(caption.replace("A SAR", "A radar"), read, lexicon) is None
    assert process_time() - begin < 5


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ("words", "`reading` must hold"),
        ({"numbers": {"two": "2"}}, "`reading.numbers` must hold"),
        ({"numbers": {"yes": True}}, "`reading.numbers` must hold"),
        ({"refused": ["no", False]}, "`reading.refused` must be a list of texts"),
        ({"refuse": ["no"]}, "`reading.refuse` is no part of a wording; did you mean `refused`?"),
        ({"orders": ["subject relation object"]}, "must name subject, object, relation and one of two places"),
        ({"orders": ["subject relation object place"]}, "must name subject, object, relation and one of two places"),
        ({"phrases": ["is"]}, "`reading.phrases` must hold `name: list of texts` lines"),
        ({"phrases": {"one": ["{two}"], "two": [""]}}, "no list of `reading.phrases` above is named 'two'"),
        ({"around": {"behind_group": ["{seen}"]}}, "no list of `reading.phrases` above is named 'seen'"),
        ({"around": {"behind_groups": [""]}}, "is no part of a wording; did you mean `behind_group`?"),
    ],
)
def test_words_for_reading_that_cannot_be_used_are_told(reading: object, said: str, tmp_path: Path) -> None:
    [problem] = content_problems({**read_content("en"), "reading": reading})
    assert said in problem
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**read_content("en"), "reading": reading}))
    with pytest.raises(InputError, match=r"own\.yaml: `reading"):
        read_wording(str(path))


def test_a_wording_of_its_own_needs_no_words_for_reading() -> None:
    content = {key: value for key, value in read_content("en").items() if key != "reading"}
    assert not list(content_problems(content))
    wording: Wording = replace(EN, content=content)
    lexicon = make_lexicon(SARDET.values(), wording)
    assert fault_of("Here are 5 boats.", read_caption("5 ships.", lexicon), lexicon) is None
