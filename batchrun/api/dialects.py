"""What servers' codes, words and sentences mean: the ending in the table of codes that each of them names.

Machine-readable words (WORDS) decide first, then the status (STATUSES, RELAYED), English within a status (TEXTS) last.
"""

LOWEST_CODE, HIGHEST_CODE = 300, 599
"""What counts as a code of the API."""

STATUSES: dict[int, str] = {
    401: "unauthorized", 402: "no_credit", 403: "forbidden", 404: "not_found", 405: "not_found",
    413: "payload_too_large", 429: "rate_limited", 503: "overloaded", 529: "overloaded",
    407: "connection",  # a proxy that wants a login sends nothing on
    446: "content_policy",  # WSO2's guardrails
    498: "overloaded",  # Groq's flex tier
    # Not the row's fault though below 500: timed out, conflict, TGI's failed generation, too early, closed.
    **dict.fromkeys((408, 409, 424, 425, 499), "server_error"),
}  # fmt: skip
"""The ending of a code about which nothing more is known; other 4xx are a bad_request, other 5xx a server_error."""

RELAYED: dict[int, str] = {
    400: "provider_rejected", 401: "provider_error", 402: "provider_error", 403: "provider_rejected",
    404: "provider_error",
}  # fmt: skip
"""The ending of a code that is a provider's verdict, which OpenRouter only relays: not on our key, credit or model."""

FINISHES: dict[str, str] = {
    reason: ending
    for ending, reasons in {
        "ok": "stop eos eos_token end_turn stop_sequence complete completed finished done end tool_calls tool_use "
              "function_call",
        "truncated": "length max_tokens max_output_tokens max_length model_length max_new_tokens token_limit "
                     "max_completion_tokens context_length model_context_window_exceeded",
        "content_filter": "content_filter content_filtered safety recitation blocklist prohibited_content spii "
                          "image_safety image_prohibited_content image_recitation model_armor guardrail_intervened "
                          "sensitive",
        "refused": "refusal refused",
        "server_error": "error insufficient_system_resource abort aborted cancelled canceled network_error "
                        "engine_error timeout overloaded unload malformed_function_call",
    }.items()
    for reason in reasons.split()
}  # fmt: skip
"""What a finish_reason means, in lower case; one that is not here does not prove a whole answer."""

_ENDING_WORDS = {
    "unauthorized": "invalid_api_key api_key_invalid access_token_expired unauthenticated expired_key "
                    "token_not_found_in_db account_deactivated organization_restricted consumer_suspended",
    "request_over_budget": "weight_exceeds_budget",
    "in_flight_budget": "openrouter_in_flight_budget in_flight_budget_exhausted",
    "key_limit": "openrouter_key_limit openrouter_guardrail_budget openrouter_workspace_budget key_limit "
                 "budget_exceeded pre_consume_token_quota_failed blocked_api_access",
    "no_credit": "openrouter_credits insufficient_quota billing_hard_limit_reached billing_not_active billing_error "
                 "billing_disabled exceeded_current_quota_error arrearage accountoverdueerror insufficient_credits "
                 "insufficient_balance insufficient_user_quota",
    "daily_quota": "openrouter_free_tier_daily quota_per_day",
    "rate_limited": "quota_per_minute openrouter_free_tier_per_minute openrouter_shared_capacity "
                    "upstream_provider_shared_pool capacity_exhausted capacity_exceeded throttlingexception",
    "context_length": "context_length_exceeded exceed_context_size_error max_tokens_exceeded token_limit_exceeded "
                      "string_too_long string_above_max_length tokens_limit_reached 1261",
    "content_policy": "content_policy_violation content_filter data_inspection_failed image_content_policy_violation "
                      "inputtextsensitivecontentdetected inputimagesensitivecontentdetected 1301",
    "refused": "refusal",
    "invalid_prompt": "invalid_prompt",
    "invalid_image": "invalid_image image_too_large image_too_small unsupported_image_format image_download_failed "
                     "image_not_found invalid_image_format invalid_image_url invalid_image_mode invalid_base64_image "
                     "image_parse_error image_file_too_large image_file_not_found empty_image_file "
                     "unsupported_image_media_type failed_to_download_image",
    "invalid_model": "model_not_found wrong_endpoint invalid_model model_not_supported key_model_access_denied "
                     "team_model_access_denied deploymentnotfound model_not_available model_decommissioned "
                     "model_terms_required model_permission_blocked_org model_permission_blocked_project "
                     "model_access_forbidden 1211",
    "no_endpoint": "no_endpoints model_deprecated privacy_restricted constraint_filtered free_variant_ended",
    "region_restricted": "region_restricted unsupported_country_region_territory",
    "provider_error": "model_unavailable_upstream",
    "schema_mismatch": "json_validate_failed",
}  # fmt: skip
WORDS: dict[str, str] = {word: ending for ending, words in _ENDING_WORDS.items() for word in words.split()}
"""The ending that a machine-readable word names, under any status below 500; the first one found counts."""

_CODE_WORDS = {
    400: "invalid_request invalid_request_error invalid_argument failed_precondition",
    401: "authentication authentication_error auth_error",
    402: "payment_required", 403: "permission_denied permission_error", 404: "not_found not_found_error",
    413: "payload_too_large request_too_large",
    422: "unprocessable", 429: "rate_limit_exceeded rate_limit_error resource_exhausted",
    500: "server server_error unmapped internal api_error", 502: "provider_unavailable",
    503: "provider_overloaded overloaded_error unavailable", 504: "timeout timeout_error deadline_exceeded",
}  # fmt: skip
WORD_CODES: dict[str, int] = {word: code for code, words in _CODE_WORDS.items() for word in words.split()}
"""The code of an error inside a 200 that brings a word in place of a number."""

_BODY = (400, 422)  # Groq, vLLM and OpenAI answer 400 where TGI, Together and FastAPI answer 422
TEXTS: tuple[tuple[tuple[int, ...], str, str], ...] = (
    # Anthropic answers 400 for an empty account, xAI and SiliconFlow 403, Fireworks 412, Zhipu 429. "Check your billing
    # details" proves nothing on a 429: Gemini says it whenever a minute's quota is used up.
    ((400, 403, 412, 429),
     (r"credit balance|balance is (too low|insufficient)|insufficient (credit|balance|fund)|(any|no|out of) credits?\b"
      r"|account .{0,80}(suspended|not active)|credits .{0,20}depleted|all available credits"
      r"|free tier .{0,40}exhausted"), "no_credit"),
    ((400, 403, 412), r"billing (details|hard limit|is not|account)", "no_credit"),
    ((400, 401, 403, 429), r"budget has been exceeded|exceeded(token)?budget|over budget|crossed budget", "key_limit"),
    ((400, 402, 403), r"key limit|spend(ing)? limit|monthly limit|usage limits|call volume quota", "key_limit"),
    ((429,), r"spend(ing)? limit|calls / month|(session|weekly) usage limit", "key_limit"),
    ((400, 403),
     (r"api.?key.{0,60}(expired|invalid|incorrect|not (valid|found)|missing|leaked|revoked|disabled)"
      r"|(incorrect|invalid|missing|expired) api.?key|must (supply|provide|send) an api.?key"
      r"|organization has been (disabled|restricted)|(security|bearer|access) token.{0,40}(expired|invalid)"
      r"|invalid (access token|authorization header)|(authentication|authorization) failed|unregistered callers"
      r"|not authenticated"),
     "unauthorized"),
    ((400, 403), r"(country|region|location|territory).{0,40} not (supported|available)", "region_restricted"),
    ((400, 404, 422, 501), r"is a decisions? model|not a decisions? model", "wrong_mode"),
    ((400, 404, 410, 422),
     (r"not a valid model|invalid model( name)? ?(:|passed)|unknown model|no models? loaded"
      r"|model.{0,80} (does not|doesn't|not) exist|models?[ /](.{0,80} )?not found|model not served"
      r"|model identifier is invalid|unable to access .{0,20}model|model .{0,80}(decommissioned|end of (its )?life)"
      r"|model .{0,80}was removed|does not support chat|not a chat model|supported in v1/(responses|completions)"
      r"|operation does not work with|on-demand throughput|no such model|model .{0,40}as legacy"
      r"|use.case (details|form)|not activated the model|not found for account|endpoint does not exist"
      r"|llm provider not provided"),
     "invalid_model"),
    ((403,), r"access to (the )?model\b", "invalid_model"),
    ((404,), r"^model: ", "invalid_model"),  # all that Anthropic says
    ((500,), r"requires more system memory", "invalid_model"),  # Ollama: "(5.6 GiB) than is available (3.2 GiB)"
    # LM Studio answers 400 where its model crashed or was unloaded: the state of the server, not a fault of the row.
    ((400,), r"model (has )?(crashed|unloaded)|failed to load( the)? model|channel error", "server_error"),
    ((400,), r"throttl|please wait before", "rate_limited"),
    (_BODY, r"model .{0,30}(valid json|match.{0,30}schema)|(validate|generate) json|generated json", "schema_mismatch"),
    # Groq: "`max_tokens` must be less than or equal to `8192`"; the same for every row.
    # So does Bedrock of "the maximum tokens you requested".
    (_BODY,
     (r"max_(completion_)?tokens.? must be less than or equal|range of max_tokens|must have stream=true"
      r"|maximum tokens you requested"), "bad_parameters"),
    ((*_BODY, 413, 500),
     (r"context.?(length|size|window|limit)|maximum .{0,20}tokens|maximum (model|input|prompt|allowed) length"
      r"|range of input length|(too many( input)?|must have less than .{0,9}) tokens|max_new_tokens.{0,4} must be <="
      r"|longer than the maximum|model token limit|n_keep|max_seq_len|too large to process"
      r"|max_(completion_)?tokens must be at least 1, got (-|0)|(prompt|input).{0,40} too long|prompt exceeds"
      r"|token count.{0,40} (exceeds|supports up to)|too large for model"), "context_length"),
    ((429,), r"request too large|must be reduced", "payload_too_large"),
    ((500,), r"json schema conversion|parse grammar", "bad_parameters"),  # llama.cpp
    (_BODY,
     (r"response_(format|schema)|json.schema|invalid schema|the word .{0,3}json|grammar|structured output"
      r"|support.{0,20} json mode|json mode .{0,20}support"), "bad_parameters"),
    # Said by a model's chat template, of each row's messages alike.
    (_BODY, r"chat template|template error|roles must alternate|system role|expected last role", "bad_parameters"),
    (_BODY,
     (r"unrecognized|(unknown|unsupported) (param|value|field|argument)|not supported with this model|extra inputs"
      r"|argument not supported|items or fewer|max_tokens: \d+ >|unknown name|cannot both be specified|too many states"
      r"|property .{1,40} is unsupported|extraneous key|unexpected keyword argument|supported range is"
      r"|does not support (parameter|tools|thinking|reasoning)"), "bad_parameters"),
    # Cloudflare's gateway answers 424: "Prompt blocked due to security configurations".
    ((*_BODY, 403, 424),
     (r"content ?(policy|management|filter|exists risk)|safety system|requires moderation|flagged|request blocked"
      r"|violates usage guidelines|new_sensitive|guardrail|blocked due to (security|dlp)"), "content_policy"),
    (_BODY, r"(error|timeout) while downloading|at most \d+ image", "invalid_image"),
    (_BODY, r"image.{0,40}(invalid|unsupported|format|too (large|small)|download|fetch)", "invalid_image"),
    (_BODY, r"(invalid|unsupported|download|fetch|decode|process|support).{0,40}image|unknown variant .image",
     "invalid_image"),
    ((*_BODY, 500), r"not a multimodal model|image input", "invalid_image"),
    # Anthropic: "The PDF specified was not valid", "A maximum of 100 PDF pages may be provided"; Gemini: "The document
    # has no pages".
    (_BODY, r"\bpdf\b.{0,40}(valid|password|parse)|(parse|maximum).{0,40}\bpdf\b|document has no pages",
     "invalid_image"),
    # Groq: "`reasoning_effort` must be one of `none` or `default`". A parameter is the same for every row.
    (_BODY,
     (r"\b(temperature|top_p|top_k|logprobs|(presence|frequency)_?penalty|reasoning_effort|enable_thinking)\b"
      r"|deserialize the json body"), "bad_parameters"),
    ((404,), r"that support (image|audio|video|file|tool)", "invalid_image"),
    ((404,), r"no endpoints|no allowed providers|data policy|guardrail restrict|free model training", "no_endpoint"),
    ((429,), r"per-day|limit_rpd|per 86400s|(requests|tokens) per day(,| limit)|daily limit|daily free allocation",
     "daily_quota"),
    ((503,), r"no (available |allowed )?(model )?(provider|channel)|routing requirements", "no_provider_available"),
    # Zhipu and Z.ai answer 200 with {"code": 500, "msg": "404 NOT_FOUND"} for a wrong path.
    ((500,), r"^404 not_found", "not_found"),
    # LM Studio answers 200 with {"error": "Unexpected endpoint or method."}: only the text says what it is.
    ((), r"unexpected endpoint|not found|no such (route|path)", "not_found"),
    ((), r"^unauthorized|authentication (failed|required)|login fail", "unauthorized"),
    ((), r"rate limit|too many requests", "rate_limited"),
    ((), r"overloaded", "overloaded"),
)  # fmt: skip
"""Codes, a pattern for lower-case English text, and the ending that it names, for APIs without words.

Without a code all of them count.
"""

FORMS: tuple[tuple[frozenset[str], str, str], ...] = (
    (frozenset({"type", "content"}), "Anthropic's Messages API", "https://api.anthropic.com/v1"),
    (frozenset({"candidates"}), "Gemini's own API", "https://generativelanguage.googleapis.com/v1beta/openai"),
    (frozenset({"output", "stopReason"}), "Bedrock's Converse API",
     "https://bedrock-runtime.REGION.amazonaws.com/openai/v1"),
    (frozenset({"output", "object"}), "OpenAI's Responses API", "https://api.openai.com/v1"),
    (frozenset({"message", "done"}), "Ollama's own API", "http://HOST:11434/v1"),
    (frozenset({"response", "done"}), "Ollama's own API", "http://HOST:11434/v1"),
    (frozenset({"message", "finish_reason"}), "Cohere's own API", "https://api.cohere.ai/compatibility/v1"),
    (frozenset({"result", "success"}), "Cloudflare's own API",
     "https://api.cloudflare.com/client/v4/accounts/ACCOUNT/ai/v1"),
    (frozenset({"generated_text"}), "TGI's own API", "http://HOST:PORT/v1"),
    (frozenset({"content", "stop"}), "llama.cpp's own API", "http://HOST:PORT/v1"),
)  # fmt: skip
"""What replies of other APIs contain, and no `choices`; the API's name, and the address that batchrun needs."""
