"""Operations that XLA does not do well everywhere, with an implementation per platform."""
