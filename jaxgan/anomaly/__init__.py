"""Methods of anomaly detection: games on normal examples, and what their networks make of others.

A method for images is a module with

    networks(shape, width, latent, dtype) -> {player: Flax module}     # a generator "gen" among them
    game(networks, plan) -> Game
    residuals(networks, weights, images) -> Residuals

and, where another game comes before, `first(networks, plan) -> Game`: players of `game` that have the name of one of
its players begin with that one's weights. `weights` is {player: {"params": ..., and the collections of its variables}}.
A module of your own is `--method=pkg.module`.
"""
