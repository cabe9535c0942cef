import pytest
import torch

from insight.data.text import END, PAD, START, Tokenizer
from insight.errors import InputError
from insight.interpret.players import copied, grid_segments, num_players, shared, token_words, whole_words


@pytest.mark.parametrize(("grid", "count"), [(8, 16), (7, 16), (7, 9), (5, 25), (3, 1)])
def test_segments_are_rectangles_as_equal_as_possible(grid, count):
    label = grid_segments(grid, count).view(grid, grid)
    assert label.unique().tolist() == list(range(count))
    sides = []
    for one in range(count):
        rows, columns = (label == one).nonzero().unbind(dim=1)
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert height * width == len(rows)  # no hole, no corner missing
        sides += [height, width]
    assert max(sides) - min(sides) <= 1
    assert label[0, 0] == 0 and label[-1, -1] == count - 1


@pytest.mark.parametrize("count", [0, -4, 15, 81])
def test_a_number_of_segments_that_cuts_no_grid_is_an_error(count):
    with pytest.raises(InputError, match=rf"segments={count}: a grid of 8 x 8 patches is cut into a square number"):
        grid_segments(8, count)


def test_every_token_but_the_special_ones_is_a_player():
    tokens = torch.tensor([[START, 9, 7, 9, END, PAD], [START, 5, END, PAD, PAD, PAD], [START, END, PAD, PAD, PAD, PAD]])
    label = token_words(tokens)
    assert label.tolist() == [[-1, 0, 1, 2, -1, -1], [-1, 0, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]]
    assert num_players(label).tolist() == [3, 1, 0]


def test_tokens_of_one_word_are_one_player():
    text = "unbelievably blue"
    tokenizer = Tokenizer.train(["a blue dog"] * 4, vocab_size=280)
    tokens, _ = tokenizer.encode([text], context_length=32)
    words = tokenizer.words(text, context_length=32)
    assert len(words[0].positions) > 1
    label = whole_words([[word.positions for word in words]], tokens.shape[1])[0]
    for number, word in enumerate(words):
        assert (label == number).nonzero()[:, 0].tolist() == list(word.positions)
    assert int((label >= 0).sum()) == int((tokens >= 3).sum())


@pytest.mark.parametrize("positions", [[[[1, 2], [2]]], [[[6]]], [[[-1]]]])
def test_positions_that_do_not_fit_are_an_error(positions):
    with pytest.raises(InputError, match="taken twice or outside of the 6 tokens"):
        whole_words(positions, 6)


def test_shares_keep_sums_and_copies_keep_values():
    value = torch.tensor([[6.0, 1.0], [-3.0, 2.0]])
    label = torch.tensor([0, 0, -1, 1, 0])
    assert copied(value, label).tolist() == [[6, 6, 0, 1, 6], [-3, -3, 0, 2, -3]]
    assert shared(value, label).tolist() == [[2, 2, 0, 1, 2], [-1, -1, 0, 2, -1]]
    own = torch.tensor([[0, 1, 1], [1, -1, 0]])  # each row its own labels
    assert shared(value, own).tolist() == [[6, 0.5, 0.5], [2, 0, -3]]
