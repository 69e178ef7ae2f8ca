"""The one exception that stands for a user's mistake, and how reasons are quoted in it."""


class LongVLMError(Exception):
    """A mistake in the input, told in a sentence or two that name the thing, its value and the remedy.

    The command line prints it as one `Error:` line and exits with status 2; anything else that is raised is a
    defect of ours, keeps its traceback and exits with status 70.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Torch, which is not imported here, has an error of its own for a GPU's memory, and none for the processor's."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or of_torch


def one_line(reason: object) -> str:
    """What an exception or a text says, without line breaks; an exception without words by its kind."""
    text = " ".join(str(reason).split())
    return type(reason).__name__ if isinstance(reason, BaseException) and not text else text
