"""The certificate service: tokens that let devices enrol themselves, renewal, revocation, a change of the authority."""
