"""repro.data.identity_split: who counts, and which images are held out, from names and a seed alone."""

import random
import subprocess
import sys

from repro.data.identity_split import SplitRule, split_identities


def people(**counts: int) -> list[tuple[str, str]]:
    return [(name, f"{name}/{number:03}.jpg") for name, count in counts.items() for number in range(count)]


def names(images, members) -> list[str]:
    return [images[member.position][1] for member in members]


def test_a_tenth_of_each_is_held_out_and_the_rest_is_for_training():
    images = people(anna=70, ben=99, cora=100)
    split = split_identities(images, SplitRule())
    assert split.class_names == ("anna", "ben", "cora")
    assert [sum(member.label == label for member in split.test) for label in range(3)] == [7, 9, 10]
    assert [sum(member.label == label for member in split.train) for label in range(3)] == [63, 90, 90]
    assert sorted(names(images, split.train) + names(images, split.test)) == sorted(
        name for _, name in images
    )


def test_identities_with_too_few_are_left_out_and_counted():
    split = split_identities(people(anna=69, ben=70, cora=3), SplitRule())
    assert split.class_names == ("ben",)
    assert split.too_few == {"anna": 69, "cora": 3}
    assert {member.label for member in split.train} == {0}


def test_at_least_one_image_is_held_out():
    split = split_identities(people(anna=3, ben=2), SplitRule(min_images=2))
    assert [member.label for member in split.test] == [0, 1]


def test_images_that_are_not_usable_do_not_count():
    images = people(anna=71, ben=70)
    split = split_identities([None, None, *images[2:]], SplitRule())
    assert split.too_few == {"anna": 69}
    assert names(images, split.test) == names(images, split_identities(images, SplitRule()).test[7:])


def test_the_order_in_which_images_are_found_and_other_people_change_nothing():
    images = people(anna=75, ben=80)
    shuffled = random.Random(1).sample([*images, *people(zoe=90)], 245)
    first, second = split_identities(images, SplitRule()), split_identities(shuffled, SplitRule())
    assert names(images, first.test) == [name for name in names(shuffled, second.test) if "zoe" not in name]
    assert names(images, first.train) == [name for name in names(shuffled, second.train) if "zoe" not in name]


def test_another_seed_holds_out_others():
    images = people(anna=100)
    drawn = {tuple(names(images, split_identities(images, SplitRule(seed=seed)).test)) for seed in range(5)}
    assert len(drawn) == 5


def test_the_draw_is_this_one_in_every_process_and_version():
    # A change here changes FaceScrub's and every folder set's split: raise PREPARATION_VERSION with it.
    script = (
        "from repro.data.identity_split import SplitRule, split_identities; "
        "images = [('anna', f'anna/{n:03}.jpg') for n in range(70)]; "
        "print([member.position for member in split_identities(images, SplitRule()).test])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[9, 12, 18, 21, 42, 53, 64]"


def test_every_image_is_as_likely_as_another_to_be_held_out():
    images = people(anna=100)
    counts = [0] * 100
    for seed in range(1000):
        for member in split_identities(images, SplitRule(seed=seed)).test:
            counts[member.position] += 1
    # Binomial(1000, 0.1): five standard deviations are 47.
    assert all(53 <= count <= 147 for count in counts)
