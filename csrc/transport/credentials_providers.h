// The places of the chain that ask a service or a program; for the credentials_*.cpp files alone.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/credentials.h"

namespace torchnpy {

using Provider = std::unique_ptr<CredentialsProvider>;

// ECS and EKS: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI.
Provider make_container_provider();
// EC2: IMDSv2.
Provider make_instance_provider();
// A profile's credential_process.
Provider make_process_provider(std::shared_ptr<const AwsProfile> profile);
// A profile's role_arn with source_profile or credential_source, by STS.
Provider make_role_provider(std::shared_ptr<const AwsProfile> profile, CredentialsContext context);
// AWS_WEB_IDENTITY_TOKEN_FILE (`use_environment`) or the profile's web_identity_token_file.
Provider make_web_identity_provider(std::shared_ptr<const AwsProfile> profile,
                                    CredentialsContext context, bool use_environment);
Provider make_environment_provider();
// What a profile alone gives, without roles: for a role's source_profile, too.
std::vector<Provider> make_profile_chain(const std::shared_ptr<const AwsProfile>& profile,
                                         const CredentialsContext& context, bool use_environment);

// Throws ArgumentError for blanks and control characters in them.
void check_printable(const Credentials& credentials);

// The URL may be asked for credentials: https, or a host of the machine or of ECS and EKS.
// Throws ArgumentError.
void check_container_url(const std::string& url, std::string_view parameter);

}  // namespace torchnpy
