# %% [markdown]
# # Toy: the mean
#
# {cite:t}`nobody2000toy` do nothing.

# %%
import uad_core

detector = uad_core.create("toy", profile="smoke")
