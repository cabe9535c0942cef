import torch

from insight.interpret.attention_gradients import attention_gradients, with_gradient
from insight.interpret.explain import looking_at


def subject_of(family, batch):
    with looking_at(family, batch, None) as subject:
        return subject


def all_layers(flow):
    return [*flow.image, *flow.text, *(name for pair in flow.fusion for name in pair)]


def test_gradients_beside_the_fused_kernel_are_those_of_a_softmax_that_autograd_sees(family, batch, explicit_attention):
    subject, names = subject_of(family, batch), all_layers(family.flow)
    explicit_attention.clear()  # the classifier has looked for its highest output
    score = family.score(with_gradient(subject.inputs))  # in the order of the layers, attention step by step
    oracle = dict(zip(names, torch.autograd.grad(score.sum(), explicit_attention), strict=True))
    kept = list(explicit_attention)
    _, found = attention_gradients(subject, names)
    assert list(found) == names
    for index, name in enumerate(names):
        torch.testing.assert_close(found[name].weights_RHTS, kept[index].detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found[name].gradient_RHTS, oracle[name], atol=1e-5, rtol=1e-4)


def test_the_score_is_bit_identical_to_the_models_own(family, batch):
    subject = subject_of(family, batch)
    with torch.no_grad():
        plain = family.score(subject.inputs)
    score, _ = attention_gradients(subject, all_layers(family.flow))
    assert torch.equal(score, plain)
    assert (subject.forward_rows, subject.backward_rows) == (len(subject), len(subject))


def test_frozen_weights_do_not_hide_the_gradients_and_get_none(family, batch):
    names = all_layers(family.flow)
    _, free = attention_gradients(subject_of(family, batch), names)
    family.model.requires_grad_(False)
    _, frozen = attention_gradients(subject_of(family, batch), names)
    assert all(torch.equal(free[name].gradient_RHTS, frozen[name].gradient_RHTS) for name in names)
    assert all(parameter.grad is None for parameter in family.model.parameters())


def test_a_layer_that_the_score_does_not_depend_on_has_zero_gradients(cross_attention, batch):
    with torch.no_grad():
        cross_attention.model.fusion[1].cross_attention.output.weight.zero_()
    _, found = attention_gradients(subject_of(cross_attention, batch), all_layers(cross_attention.flow))
    assert not found["fusion.1.cross_attention"].gradient_RHTS.any()
    assert found["fusion.0.cross_attention"].gradient_RHTS.any()
