/** A self-signed certificate for `localhost` and `self-signed.test`, valid into the 2090s. Made for these tests, trusted by nobody. */
export const selfSigned = {
  key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgnmC9wNAaXPsTVhLL
kvxpv46PGc2PS9qTit//xoeXxoOhRANCAARnvIOdtdW/GIGIKyoKY0rfyISTkGzv
VePIkuveoDvG44IHnxpqbtJLvNcwypeFFKmcXU0oBq1Q6FQ6bfOj2Dkm
-----END PRIVATE KEY-----
`,
  cert: `-----BEGIN CERTIFICATE-----
MIIBpzCCAU2gAwIBAgIUS+scz+f+CblF5o4Hs+EMIUPuMyIwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTAxNTY0MloYDzIxMDAxMDI0
MDE1NjQyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARnvIOdtdW/GIGIKyoKY0rfyISTkGzvVePIkuveoDvG44IHnxpqbtJL
vNcwypeFFKmcXU0oBq1Q6FQ6bfOj2Dkmo3sweTAdBgNVHQ4EFgQUvICuSBFJoYh+
cY+YWqpg+RXDLvAwHwYDVR0jBBgwFoAUvICuSBFJoYh+cY+YWqpg+RXDLvAwDwYD
VR0TAQH/BAUwAwEB/zAmBgNVHREEHzAdgglsb2NhbGhvc3SCEHNlbGYtc2lnbmVk
LnRlc3QwCgYIKoZIzj0EAwIDSAAwRQIgajcDg9xI+plpr48rUqadxPfQm7ilP9C7
rdPk4SN0laMCIQCAmLWVTwpfgkDh2F0OCBLV1b0oqzGZL77URmyAtpe2Dw==
-----END CERTIFICATE-----
`,
};
