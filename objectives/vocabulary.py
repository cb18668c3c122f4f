"""One tokenizer, two paddings: bringing the logits of two models to one vocabulary."""

import operator

import jax


def equal_vocabularies(
    student_logits: jax.Array, teacher_logits: jax.Array, vocab_size: int | None
) -> tuple[jax.Array, jax.Array]:
    """Both logits over the same tokens: the ids at `vocab_size` and above are removed.

    Model families pad their embedding to different multiples (151936 and 152064 for one
    tokenizer). The padded ids are no tokens, so both softmaxes must be without them: a padded
    logit of 0 is a token of mass exp(0), and weighs more than most of the vocabulary.

    The slice is static and allocates nothing under `jit`: it fuses with the first read.

    Args:
        student_logits: `[..., V_student]`.
        teacher_logits: `[..., V_teacher]`.
        vocab_size: The tokenizer's own number of tokens, or None if nothing is padded.

    Returns:
        The two logits, `[..., vocab_size]`.

    Raises:
        ValueError: If the sizes differ and `vocab_size` is None, or it exceeds either.
        TypeError: If `vocab_size` is not an integer.
    """
    student_size, teacher_size = student_logits.shape[-1], teacher_logits.shape[-1]
    if vocab_size is None:
        if student_size != teacher_size:
            raise ValueError(
                f"student and teacher vocabularies differ: {student_size} and {teacher_size}. "
                "Same tokenizer padded differently: pass vocab_size=<the tokenizer's size>. "
                "Different tokenizers: a token-level divergence is undefined between them; use a "
                "cross-tokenizer objective"
            )
        return student_logits, teacher_logits
    return (
        restrict_vocabulary(student_logits, vocab_size, "student_logits"),
        restrict_vocabulary(teacher_logits, vocab_size, "teacher_logits"),
    )


def restrict_vocabulary(logits: jax.Array, vocab_size: int, name: str) -> jax.Array:
    """`logits[..., :vocab_size]`, or one line that says why there is no such slice."""
    try:
        vocab_size = operator.index(vocab_size)
    except TypeError:
        raise TypeError(
            f"vocab_size must be an integer known at trace time, got {type(vocab_size).__name__}"
        ) from None
    if not 1 <= vocab_size <= logits.shape[-1]:
        raise ValueError(
            f"vocab_size must lie between 1 and the vocabulary of {name} ({logits.shape[-1]}), "
            f"got {vocab_size}"
        )
    return logits[..., :vocab_size]
