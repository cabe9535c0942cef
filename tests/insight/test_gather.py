"""Two gloo processes against one: gradients of the global batch, and metrics over both shares. One spawn, which costs seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from insight import losses
from insight.gather import alone, gather, rank, world_size
from insight.metrics import RetrievalMetrics

PICTURES, CAPTIONS, PROCESSES = 6, 2, 2
IMAGE_ID = torch.tensor([10, 11, 12, 13, 14, 10])  # one picture is in both shares: positives reach over processes


class Towers(nn.Module):
    """Two layers, a scale and a bias, the same in every process."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_dim = 4
        self.image, self.text = nn.Linear(5, 4), nn.Linear(7, 4)
        self.scale, self.bias = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.tensor(-1.0))


def data():
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2, PICTURES, 5, generator=generator)
    return views[0], views[1], torch.randn(PICTURES * CAPTIONS, 7, generator=generator), IMAGE_ID.repeat_interleave(CAPTIONS)


def loss(towers, image, view, text, image_id, caption_image_id):
    """All losses over embeddings, gathered as training gathers them."""
    image_embedding, view_embedding = (gather(F.normalize(towers.image(x), dim=-1)) for x in (image, view))
    text_embedding = gather(F.normalize(towers.text(text), dim=-1))
    image_id, caption_image_id = gather(image_id), gather(caption_image_id)
    both = image_embedding, text_embedding, image_id[:, None] == caption_image_id[None, :], towers.scale
    return (
        losses.contrastive(*both)
        + losses.hard_negative_contrastive(*both)
        + losses.sigmoid_pairwise(*both, towers.bias)
        + losses.decorrelation(image_embedding, text_embedding)
        + losses.image_views(image_embedding, view_embedding, image_id)
        + losses.caption_pairs(text_embedding, caption_image_id)
        + losses.decoupled_contrastive(*both)
        + losses.supervised_contrastive(image_embedding, text_embedding, image_id, caption_image_id, towers.scale)
        + losses.vicreg(*both[:3])
        + losses.barlow_twins(*both[:3])
    )


def momentum_steps(towers, *rows):
    """Two steps of MomentumContrast over a queue of 8: their losses, and the queue that they leave."""
    image, text, image_id, caption_image_id = rows
    loss = losses.MomentumContrast(towers, queue_size=8, momentum=0.5)

    def encode(model):
        with torch.no_grad():
            return gather(F.normalize(model.image(image), dim=-1)), gather(F.normalize(model.text(text), dim=-1))

    values = []
    for _ in range(2):
        embeddings = gather(F.normalize(towers.image(image), dim=-1)), gather(F.normalize(towers.text(text), dim=-1))
        values.append(loss(*embeddings, gather(image_id), gather(caption_image_id), towers.scale, towers, encode))
        with torch.no_grad():
            towers.image.weight.mul_(0.5)
    return torch.stack(values).detach(), loss.text_queue, loss.text_queue_id


def share(rows, process):
    size = len(rows) // PROCESSES
    return rows[process * size : (process + 1) * size]


def retrieval_batches():
    """Five pictures: three and two, and one of the first process's again, as samplers pad."""
    generator = torch.Generator().manual_seed(2)
    image, text = torch.randn(5, 4, generator=generator), torch.randn(10, 4, generator=generator)
    ids, caption_ids = torch.arange(5), torch.arange(10)
    return [
        [(image[a:b], text[2 * a : 2 * b], ids[a:b], caption_ids[2 * a : 2 * b], ids.repeat_interleave(2)[2 * a : 2 * b]) for a, b in spans]
        for spans in ([(0, 2), (2, 3)], [(3, 5), (0, 1)])
    ]


def work(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=process, world_size=PROCESSES)
    answers = {"world": (rank(), world_size())}
    image, view, text, caption_image_id = data()
    towers = Towers()
    value = loss(towers, *(share(rows, process) for rows in (image, view, text, IMAGE_ID, caption_image_id)))
    value.backward()
    for parameter in towers.parameters():  # what DistributedDataParallel does
        dist.all_reduce(parameter.grad)
        parameter.grad /= PROCESSES
    answers["loss"], answers["gradients"] = value.detach(), [parameter.grad for parameter in towers.parameters()]

    with alone():  # what an evaluation does: its shares may differ in size
        if process == 0:
            answers["own loss"] = (
                rank(),
                world_size(),
                loss(Towers(), *(share(rows, 0) for rows in (image, view, text, IMAGE_ID, caption_image_id))).detach(),
            )

    answers["momentum"] = momentum_steps(Towers(), *(share(rows, process) for rows in (image, text, IMAGE_ID, caption_image_id)))

    answers["integers"] = gather(torch.tensor([[process, 7]]))
    answers["booleans"] = gather(torch.tensor([process == 0, True]))
    answers["transposed"] = gather(torch.arange(6).view(2, 3).T + 10 * process)
    seed = losses.hard_negatives(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool), torch.Generator().manual_seed(5))
    answers["same negatives"] = all(bool((half[:4] == half[4:]).all()) for half in map(gather, seed))
    try:
        gather(torch.zeros(2 + process, 3))
    except ValueError as error:
        answers["unequal"] = str(error)

    metric = RetrievalMetrics()
    for batch in retrieval_batches()[process]:
        metric.update(*batch)
    answers["retrieval"] = metric.compute()
    answers["still here"] = len(metric.image_id)  # gathering is undone afterwards
    metric.reset()
    if process == 0:  # the other process got no batch
        for part in retrieval_batches():
            for batch in part:
                metric.update(*batch)
    answers["retrieval of one"] = metric.compute()
    torch.save(answers, Path(folder) / f"{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=PROCESSES)
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    return [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(PROCESSES)]


def test_gradients_of_two_processes_are_those_of_one_with_the_same_global_batch(answers):
    image, view, text, caption_image_id = data()
    towers = Towers()
    value = loss(towers, image, view, text, IMAGE_ID, caption_image_id)
    value.backward()
    for answer in answers:
        torch.testing.assert_close(answer["loss"], value.detach(), rtol=1e-6, atol=1e-6)
        for theirs, parameter in zip(answer["gradients"], towers.parameters(), strict=True):
            assert parameter.grad.abs().max() > 1e-4  # a gradient of zero would prove nothing
            torch.testing.assert_close(theirs, parameter.grad, rtol=1e-6, atol=1e-6)


def test_a_process_that_counts_as_alone_asks_nothing_of_the_others(answers):
    image, view, text, caption_image_id = data()
    expected = loss(Towers(), *(share(rows, 0) for rows in (image, view, text, IMAGE_ID, caption_image_id))).detach()
    number, size, value = answers[0]["own loss"]
    assert (number, size) == (0, 1) and "own loss" not in answers[1]  # the other one took no part, and nothing hung
    torch.testing.assert_close(value, expected)


def test_two_processes_keep_the_queue_of_one_with_the_same_global_batch(answers):
    image, _, text, caption_image_id = data()
    value, queue, pictures = momentum_steps(Towers(), image, text, IMAGE_ID, caption_image_id)
    for answer in answers:
        torch.testing.assert_close(answer["momentum"][0], value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(answer["momentum"][1], queue, rtol=1e-6, atol=1e-6)
        assert torch.equal(answer["momentum"][2], pictures) and (pictures >= 10).all()


def test_rows_come_in_order_of_rank_whatever_their_type_and_layout(answers):
    assert [answer["world"] for answer in answers] == [(0, 2), (1, 2)]
    transposed = torch.arange(6).view(2, 3).T
    for answer in answers:
        assert answer["integers"].tolist() == [[0, 7], [1, 7]]
        assert answer["booleans"].tolist() == [True, True, False, True]
        assert torch.equal(answer["transposed"], torch.cat([transposed, transposed + 10]))


def test_unequal_shares_stop_every_process_with_the_shapes(answers):
    for answer in answers:
        assert "process 0: (2, 3), process 1: (3, 3)" in answer["unequal"]


def test_processes_draw_the_same_hard_negatives(answers):
    assert all(answer["same negatives"] for answer in answers)


def test_retrieval_over_two_processes_equals_one_process(answers):
    alone = RetrievalMetrics()
    for part in retrieval_batches():
        for batch in part:
            alone.update(*batch)
    for answer in answers:
        assert answer["retrieval"] == alone.compute()
        assert answer["retrieval of one"] == alone.compute()  # a process without a batch
        assert answer["still here"] == 2


def test_in_one_process_gather_is_the_tensor_itself():
    x = torch.ones(2, requires_grad=True)
    assert gather(x) is x and (rank(), world_size()) == (0, 1)
