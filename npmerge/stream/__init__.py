"""Merges of checkpoints on disk, tensor by tensor, in constant memory.

The way of a tensor: `kernels` makes a kernel of a step of the plan, `tensors` reads the blocks that it asks for, and `engine`
hands what it merges to the writer of `npmerge.checkpoint`, in the order and on the threads that `workers` has.
"""
