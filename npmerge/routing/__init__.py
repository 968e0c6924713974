r"""Merges in function space: the blocks of several networks side by side in one, weighed where they are computed.

A merge in weight space has one block where the experts had one each, f(x; sum_k w_k p_k). Here every expert keeps its block and
what they make is mixed, sum_k w_k f(x; p_k), by weights that are the same everywhere (`FeatureAveraging`) or that a router
finds for each token (`Router`; Pari et al. 2024, "Collective Model Intelligence Requires Compatible Specialization"). All
experts are computed, so a network of N experts costs what N of its blocks cost. A router starts at zero, which is the average:

    pattern = r"blocks/(\d+)/feed_forward/"                            # which leaves are a block: one for each number
    routed = nm.route(apply, models, pattern, x, nm.Router(layers=2))  # or Router(shared=True), nm.FeatureAveraging((0.3, 0.7))
    loss = nm.fine_tuning(routed.apply, nm.NextToken())                # learns the router: trunk and experts are frozen
    found = nm.fit(routed.variables, loss, None, batches, optax.adamw(5e-3), steps=1000)
    nm.evaluate(routed.apply, found.theta, held_out, objective=nm.NextToken())  # a network like any other
    nm.flops(routed.apply, found.theta, x), nm.parameters(found.theta)
    usage = routed.apply.usage(found.theta, held_out)                  # which layers weigh which expert by how much
    nm.routing_figure(usage, names=["code", "prose"]).savefig("usage.png")

`LogitEnsemble` is the same behind the last layer. An aligned pool is `nm.align(...)` before: it matters where it moves what
blocks read and make, a residual stream; the order of units inside a block changes nothing of what that block makes.
"""
