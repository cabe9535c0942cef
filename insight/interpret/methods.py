"""The methods that come with this package, by the name under which their scores are recorded (``insight/<name>/<score>``).

Plain data for callbacks, tests and the README's table: ``explain`` never looks here, any function serves it.
"""

from __future__ import annotations

from insight.stages import Call

METHODS = {
    "raw_attention": Call("insight.interpret.attention_maps.raw_attention"),
    "rollout": Call("insight.interpret.attention_maps.rollout_map"),
    "chefer": Call("insight.interpret.relevance.chefer_relevance"),
    "legrad": Call("insight.interpret.token_gradients.legrad"),
    "grad_eclip": Call("insight.interpret.token_gradients.grad_eclip"),
    "grad_cam": Call("insight.interpret.token_gradients.grad_cam"),
    "integrated_gradients": Call("insight.interpret.attribution.integrated_gradients"),
    "saliency": Call("insight.interpret.attribution.saliency"),
    "input_x_gradient": Call("insight.interpret.attribution.input_x_gradient"),
    "gradient_shap": Call("insight.interpret.attribution.gradient_shap"),
    "smooth_grad": Call("insight.interpret.attribution.smooth_grad"),
    "direct_effect": Call("insight.interpret.heads.direct_effect"),
    "kernel_shap": Call("insight.interpret.perturbation.kernel_shap"),
    "lime": Call("insight.interpret.perturbation.lime"),
    "rise": Call("insight.interpret.perturbation.rise"),
    "occlusion": Call("insight.interpret.perturbation.occlusion"),
    "shapley_sampling": Call("insight.interpret.perturbation.shapley_sampling"),
    "joint_shapley": Call("insight.interpret.cross_modal.exact_joint_shapley"),
    "banzhaf_interactions": Call("insight.interpret.cross_modal.banzhaf_interactions"),
}
