import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import java.util.regex.Pattern;

import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.de.GermanAnalyzer;
import org.apache.lucene.analysis.email.UAX29URLEmailTokenizer;
import org.apache.lucene.analysis.en.EnglishAnalyzer;
import org.apache.lucene.analysis.miscellaneous.RemoveDuplicatesTokenFilter;
import org.apache.lucene.analysis.pattern.PatternCaptureGroupTokenFilter;
import org.elasticsearch.index.analysis.AnalyzerProvider;
import org.elasticsearch.index.analysis.AnalyzerScope;
import org.elasticsearch.index.analysis.TokenFilterFactory;
import org.elasticsearch.index.analysis.TokenizerFactory;
import org.elasticsearch.indices.analysis.AnalysisModule.AnalysisProvider;
import org.elasticsearch.plugins.AnalysisPlugin;
import org.elasticsearch.plugins.Plugin;

/**
 * What the archive lacks of the server's module analysis-common and tests need: the analyzers of two languages, and the parts that the index of
 * API keys is made with. All are Lucene's classes, as in that module.
 */
public class Analysis extends Plugin implements AnalysisPlugin {
    @Override
    public Map<String, AnalysisProvider<AnalyzerProvider<? extends Analyzer>>> getAnalyzers() {
        return Map.of("english", language(EnglishAnalyzer::new), "german", language(GermanAnalyzer::new));
    }

    @Override
    public Map<String, AnalysisProvider<TokenizerFactory>> getTokenizers() {
        return Map.of("uax_url_email", (index, environment, name, settings) -> TokenizerFactory.newFactory(name, UAX29URLEmailTokenizer::new));
    }

    @Override
    public Map<String, AnalysisProvider<TokenFilterFactory>> getTokenFilters() {
        AnalysisProvider<TokenFilterFactory> unique = (index, environment, name, settings) -> new Filter(name) {
            @Override
            public TokenStream create(TokenStream tokens) {
                return new RemoveDuplicatesTokenFilter(tokens);
            }
        };
        AnalysisProvider<TokenFilterFactory> capture = (index, environment, name, settings) -> {
            Pattern[] patterns = settings.getAsList("patterns", List.of()).stream().map(Pattern::compile).toArray(Pattern[]::new);
            boolean original = settings.getAsBoolean("preserve_original", true);
            return new Filter(name) {
                @Override
                public TokenStream create(TokenStream tokens) {
                    return new PatternCaptureGroupTokenFilter(tokens, original, patterns);
                }
            };
        };
        return Map.of("unique", unique, "pattern_capture", AnalysisPlugin.requiresAnalysisSettings(capture));
    }

    private static AnalysisProvider<AnalyzerProvider<? extends Analyzer>> language(Supplier<Analyzer> analyzer) {
        return (index, environment, name, settings) -> new Language(name, analyzer.get());
    }

    private record Language(String name, Analyzer get) implements AnalyzerProvider<Analyzer> {
        @Override
        public AnalyzerScope scope() {
            return AnalyzerScope.INDEX;
        }
    }

    private abstract static class Filter implements TokenFilterFactory {
        private final String name;

        Filter(String name) {
            this.name = name;
        }

        @Override
        public String name() {
            return name;
        }
    }
}
