/**
 * The phrases and marks by which a text tries to give a model orders. Written for text as `readings.ts` leaves it: lower-case,
 * single spaces. In a phrase a space stands for a gap between two words. Every repetition is bounded, so each place in a text costs
 * at most a fixed time.
 */

interface Phrase {
  one: string;
  many: string;
  /** With gaps between the words. */
  spaced: RegExp;
  /** The words without anything between them; absent for what depends on punctuation or lines. */
  glued?: RegExp;
}

/** Words that may stand between a verb and its object. */
const between =
  "(?:(?:all|any|every|each|of|the|these|those|this|that|your|my|our|its|their|other|such|and|or|previous|previously|prior|preceding|earlier|above|foregoing|former|past|initial|original|existing|current|old|given|developer|developer's|safety|hidden|secret|default|core|ethical|content|system|set|list) ){0,6}";
const before =
  "(?:previous|previously|prior|preceding|earlier|above|foregoing|former|past|initial|original|existing|current|old|your|system|developer|developer's|safety|hidden)";
const orders =
  "(?:instructions?|prompts?|rules?|guidelines?|directives?|directions?|commands?|orders?|constraints?|restrictions?|programming|training|guardrails?|safeguards?|polic(?:y|ies)|protocols?|context|conversation)";
/** Without rules, policies and restrictions: in a style sheet or a configuration one overrides those. */
const ordersProper =
  "(?:instructions?|prompts?|guidelines?|directives?|directions?|programming|training|guardrails?|safeguards?|safety (?:filters?|rules?|settings)|content (?:filters?|polic(?:y|ies)))";
const leave =
  "(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|neglect|disobey|pay no attention to|(?:do not|don't|never|stop) (?:follow|following|obey|obeying))";
const undo =
  "(?:overrid(?:e|es|ing)|overrul(?:e|es|ing)|overwrit(?:e|es|ing)|bypass(?:ing)?|circumvent|discard|abandon|erase|delete|reset|violate|break|skip|drop)";
const systemThing =
  "(?:prompts?|messages?|instructions?|rules?|guidelines?|directives?|polic(?:y|ies)|guardrails?|safeguards?|safety|security|restrictions?|constraints?|limitations?|controls?|filters?|protocols?)";
/** "Override system defaults" is about a program, "override system" and nothing more is not. */
const stops = "(?=$|[.,:;!?)\\]}\"'\\n]| (?:and|now|then|to|with|immediately)\\b)";

const overrides = [
  `\\b${leave} ${between}${before} ${between}${orders}\\b`,
  `\\b${leave} all ${between}(?:instructions|prompts|rules|guidelines|directives)\\b`,
  `\\b${undo} ${between}${before} ${between}${ordersProper}\\b`,
  `\\b(?:${leave}|${undo}) ${between}(?:instructions|prompts?|rules|guidelines|directives|directions|orders) (?:(?:that|which|you|i|we|they|were|was|are|have|had|been|as|stated|written|provided) ){0,4}(?:above|before|earlier|previously|given|told|so far|received)\\b`,
  "\\b(?:ignore|disregard|forget|erase) (?:everything|anything|all|whatever|what) (?:(?:of|it|that|this|which|you|i|we|the|was|were|is|has|have|had|been|came|comes|come|written|said) ){0,5}(?:above|before|previously|prior|preceding|so far|until now|up to now|you know|learned|instructed|been told|were told)\\b",
  "\\b(?:ignore|disregard|forget) (?:all )?(?:of )?(?:the )?(?:above|previous|prior),? (?:and|instead|then)\\b",
  `\\b(?:overrid(?:e|ing)|overrul(?:e|ing)|overwrit(?:e|ing)|bypass(?:ing)?|disable|disabling|ignor(?:e|ing)|disregard(?:ing)?|forget|reset|hack|jailbreak) (?:(?:the|your|this|all|any|every|current|existing|original|previous|entire|my|of) ){0,3}system ${systemThing}\\b`,
  `\\b(?:override|overrule|overwrite|bypass|jailbreak) (?:(?:the|your|this|current|entire) ){0,2}system${stops}`,
  `\\bsystem (?:${systemThing} )?(?:override|overrule|overwrite|bypass|jailbreak)\\b`,
  "\\bsystem (?:prompt|message|instructions?) (?:(?:is|are|was|were|has|have|been|be|now|must|should|will|hereby) ){1,4}(?:overrid(?:e|den)|overruled|overwritten|replaced|ignored|disregarded|disabled|void|invalid|cancell?ed|revoked|obsolete|suspended)\\b",
];

const persona =
  "(?:assistant|ai|bot|chatbot|model|llm|agent|hacker|dan|persona|character|terminal|shell|interpreter|machine|expert|admin|administrator|root|developer|attacker|criminal|evil|unrestricted|unfiltered|uncensored|jailbroken|gpt|oracle|simulator)";
const roles = [
  `\\byou are (?:now|henceforth|from now on) (?:an? |the |my |called |named )?(?:[a-z0-9'-]{1,20} ){0,3}${persona}\\b`,
  "\\byou are (?:now|henceforth) (?:free (?:from|of)|no longer (?:bound|restricted|limited|subject|required|an?|the)|(?:in|entering|operating in|running in) (?:[a-z]{1,20} ){0,2}(?:developer|dan|god|debug|admin|root|sudo|jailbreak|unrestricted|unfiltered|maintenance|evil|opposite) mode|going to (?:act|pretend|behave|ignore|obey))\\b",
  "\\bfrom (?:now|this point) (?:on|onwards?|forward),? you (?:are (?:an?|the|my|no longer)|(?:will |must |shall |should )?(?:act|behave|respond|answer|reply|obey|ignore|pretend|roleplay|role-play|only obey))\\b",
  "\\b(?:act|behave|respond|answer|pretend|roleplay|role-play) (?:as )?(?:if|though|like|to be|as|an?|you) [^.!?\\n]{0,60}\\b(?:no|without|without any) (?:ethical |moral |content |safety |more )?(?:restrictions|limitations|limits|rules|filters|guidelines|guardrails|boundaries|censorship)\\b",
  "\\b(?:enter|enable|activate|switch to|engage) (?:developer|dan|god|jailbreak|unrestricted|unfiltered|evil|opposite|sudo) mode\\b",
  "\\bdo anything now\\b",
];

const asked = [
  "\\b(?:new|real|actual|true|updated|revised|secret|hidden) (?:system )?(?:instructions?|directives?|orders?|prompt)(?: )?:",
  "\\byour (?:new|real|actual|true|only) (?:task|goal|objective|instructions?|role|mission|purpose|directive|job)(?: (?:is|are|will be)|(?: )?:)",
  "\\b(?:follow|obey|execute) (?:only )?(?:these|the following|my|this) (?:new )?(?:instructions?|commands?|directives?|orders?) instead\\b",
];

const leaks = [
  "\\b(?:reveal|print|show|repeat|output|display|leak|expose|dump|recite|disclose|tell me|give me|write out|send) (?:(?:me|us|back|out|all|of|the|entire|full|exact|complete|verbatim) ){0,4}your (?:(?:own|full|entire|exact|complete|initial|original|hidden|secret|internal|system|developer) ){0,3}(?:prompt|system message|instructions|guidelines|directives)\\b",
  "\\b(?:repeat|print|output|recite|copy) (?:everything|all(?: of)?(?: the)?(?: (?:text|words|content|messages))?|the (?:text|words|content|messages)) (?:(?:that|which|is|are|was|were|came) ){0,2}(?:above|before this|preceding this)\\b",
  "\\bwhat (?:is|are|was|were) your (?:(?:initial|original|hidden|secret|internal|exact|full) ){0,2}(?:system prompt|system message|(?:initial|original|hidden|secret|internal) instructions)\\b",
];

/** ChatML, Llama, Mistral, Gemma, Command R, DeepSeek, Alpaca, guidance; and the turns of completion models after an empty line. */
const templates = [
  "<\\| ?[a-z0-9_\\u2581]{2,40} ?\\|>",
  "\\[/?inst\\]",
  "<<?/?<?/?sys>>",
  "</?(?:start|end)_of_turn>",
  "\\[/?(?:system_prompt|available_tools|tool_calls|tool_results)\\]",
  "\\{\\{[#/]system~?\\}\\}",
  "\\n\\n(?:human|assistant): ?",
  // A heading of Alpaca's kind: "### System requirements" is none, "### Instruction" without a colon may be anything.
  "(?:^|\\n)[ >]{0,4}#{2,6} ?\\n?(?:(?:new )?system(?: (?:prompt|message|instructions?|override|note|update|command))? ?(?::|\\n|$|- ?|(?=you |ignore |new ))|(?:new )?(?:instructions?|human|user|assistant|response|task): ?)",
  "(?:^|\\n)[ >*\\[(]{0,4}system[\\])*]{0,3} ?: ?\\n?(?:you (?:are|must|will|should)|ignore|disregard|forget|new|from now|the (?:user|assistant)|do not|never|always|grant|enable|disable)\\b",
  "[<\\[(]/?(?:system[-_ ]?(?:prompt|message|instructions?|note)|admin[-_ ]?(?:message|command))[>\\])]",
];

const gap = "[ \\n\"'*_`~:|>\\\\-]{1,4}";

function phrase(one: string, many: string, sources: string[]): Phrase {
  const all = sources.join("|");
  return {
    one,
    many,
    spaced: new RegExp(all.replaceAll(" ", gap), "g"),
    glued: new RegExp(all.replaceAll("\\b", "").replaceAll(" ", ""), "g"),
  };
}

export const phrases: Phrase[] = [
  phrase("attempt to override instructions", "attempts to override instructions", overrides),
  phrase("attempt to change the model's role", "attempts to change the model's role", roles),
  phrase("announcement of new instructions", "announcements of new instructions", asked),
  phrase("request for the system prompt", "requests for the system prompt", leaks),
  { one: "chat template token", many: "chat template tokens", spaced: new RegExp(templates.join("|"), "g") },
];
